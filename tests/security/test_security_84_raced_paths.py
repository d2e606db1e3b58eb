"""Attack 84: a step changes what a path leads to, or the path itself, between a supervisor's look and its answer.

One process exchanges a directory for a link to the outside, one changes the path in memory that others share, and one
makes the calls. What is outside of the root has the same path within it, with another content, so that calls succeed.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import perl_steps
import pytest
from sandbox_process import Inside, SandboxProcess, listing

pytestmark = perl_steps.NEEDED

CANARY = f"canary-{secrets.token_hex(8)}"

RACE = r"""
my @found = ("/swapped/secret", "$up$place/secret", "/proc/self/root$up$place/secret", "/dev/..$up$place/secret",
  "/proc/self/cwd$up$place/secret", "/proc/self/fd/../../..$place/secret", "/dev/null", "/proc/self/comm", "/dev/fd/0");
my @made = ("/swapped/new", "$up$place/new", "/proc/self/root$up$place/new", "/dev/..$up$place/new", "/real/new");
my $directory = ""; for (split m{/}, $place) { $directory .= "$_/"; mkdir $directory }
mkdir "/real"; symlink("$up$place", "/swapped");
for my $each ("/real/secret", "$place/secret") { open(my $file, ">", $each); print $file "inside" }
for my $each ("$place/link", "/real/link") { symlink("inside", $each) }
open(my $script, ">", "$place/program"); print $script "#!/bin/sh\necho inside >>/ran\n"; close $script;
chmod 0755, "$place/program"; system "cp", "$place/program", "/real/program";

my @helpers;
sub shared { # memory in which another process writes the paths by turns
  my @paths = @_; my $name = "/paths-" . @helpers;
  open(my $file, ">", $name); print $file pack("a256" x @paths, @paths); close $file;
  my $page = syscall($n{mmap}, 0, 4096, 3, 0x21, -1, 0); # PROT_READ|PROT_WRITE, MAP_SHARED|MAP_ANONYMOUS
  open($file, "<", $name); syscall($n{pread64}, fileno($file), $page, 256, 0);
  my $pid = fork // die;
  while (!$pid) { for (0 .. $#paths) { syscall($n{pread64}, fileno($file), $page, 256, 256 * $_) } }
  push @helpers, $pid; return $page;
}
my $found = shared(@found);
my $made = shared(@made);
my $links = shared(map { s/secret$/link/r } grep { /secret$/ } @found);
my $programs = shared("/swapped/program", "$up$place/program", "/real/program");
my ($one, $two) = ("/swapped\0", "/real\0"); my $swapper = fork // die;
while (!$swapper) { syscall($n{renameat2}, -100, $one, -100, $two, 2) } # RENAME_EXCHANGE
push @helpers, $swapper;

my ($inside, $ways, $text, $status) = (0, 0, "", "\0" x 512);
sub read_all { my ($way, $fd) = @_; return if $fd < 0; $ways++;
  open(my $file, "<&=", $fd) or return; sysread($file, $text, 100) // return;
  print "$way read $text\n" if index($text, $canary) >= 0; $inside++ if $text eq "inside" }
my $how = pack("QQQ", 0, 0, 0); my $buffer = "\0" x 256; my $null = (1 << 8) | 3;
for my $round (1 .. 100 * $rounds) { # until something was inside, on a busy machine
  last if $round > $rounds && $inside;
  read_all("openat", syscall($n{openat}, -100, $found, 04000)); # O_NONBLOCK
  read_all("openat2", syscall($n{openat2}, -100, $found, $how, 24));
  read_all("path", syscall($n{openat}, -100, $found, 010004000));
  if (syscall($n{newfstatat}, -100, $found, $status, 0) >= 0) {
    my $size = unpack("q", substr($status, 48, 8)); print "saw it\n" if $size == $bytes;
  }
  my $got = syscall($n{readlinkat}, -100, $links, $buffer, 256);
  print "link read\n" if $got > 0 && index(substr($buffer, 0, $got), $canary) >= 0;
  syscall($n{fchmodat}, -100, $found, 0606); syscall($n{fchownat}, -100, $found, 0, 0, 0);
  syscall($n{truncate}, $made, 0);
  my $new = syscall($n{openat}, -100, $made, 0301, 0600); # O_CREAT|O_EXCL|O_WRONLY
  if ($new >= 0) { open(my $file, ">&=", $new); print $file "made" }
  syscall($n{unlinkat}, -100, $made, 0);
  syscall($n{mknodat}, -100, $made, 0020600, $null); syscall($n{unlinkat}, -100, $made, 0);
  syscall($n{linkat}, -100, $found, -100, $made, 0); syscall($n{unlinkat}, -100, $made, 0);
  if ($round % 10 == 0) {
    my $pid = fork // die; if (!$pid) { syscall($n{execve}, $programs, pack("Q", 0), pack("Q", 0)); kill 9, $$ }
    waitpid $pid, 0;
  }
}
kill 9, @helpers; waitpid($_, 0) for @helpers;
print "end ", ($inside && $ways ? "inside" : "nothing was opened"), "\n";
"""


@pytest.mark.parametrize("mode", ["chroot", "answered", pytest.param("scopeless", marks=pytest.mark.slow)])
@pytest.mark.parametrize("rounds", [20, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_race_for_a_path_leads_outside(request: pytest.FixtureRequest, mode: str, rounds: int) -> None:
    sandbox: SandboxProcess = request.getfixturevalue(f"{mode}_sandbox")
    outside = Path(sandbox.call(_outside))
    before = _state(outside)
    numbers = ", ".join(f"{name} => {number}" for name, number in perl_steps.NUMBERS.items())
    values = {"place": outside, "up": "/.." * 20, "canary": CANARY, "rounds": rounds, "bytes": len(CANARY)}
    given = "".join(f'my ${name} = "{value}"; ' for name, value in values.items())
    script = f"$| = 1; my %n = ({numbers}); {given}{RACE}"
    done = sandbox.run("/bin/perl", "-e", script, layers=(perl_steps.layer(sandbox), sandbox.busybox))
    assert (done.out, done.ended.code) == ("end inside\n", 0), done.err
    assert _state(outside) == before


def _outside(inside: Inside) -> str:
    """A directory that whoever runs steps may read, write and execute the program of."""
    place = inside.fresh("outside")
    (place / "secret").write_text(CANARY)
    (place / "link").symlink_to(CANARY)
    (place / "program").write_text(f"#!/bin/sh\necho {CANARY} >{place}/ran\n")
    (place / "program").chmod(0o755)
    (place / "secret").chmod(0o666)
    place.chmod(0o777)
    return str(place)


def _state(outside: Path) -> tuple[object, ...]:
    files = [outside / name for name in sorted(os.listdir(outside))]
    return listing(str(outside)), [(each.lstat().st_ctime_ns, each.lstat().st_size) for each in (outside, *files)]
