"""Expressions of bake files, for comparing their values with those that buildx computes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

EXPRESSIONS = r"""
absolute(-42)
absolute("-1.5")
add(123, 1)
add("1", 2)
0.1 + 0.2
1 / 3
10 / 4
2 / 3 * 3
-7 % 3
7 % -3
5.5 % 2
1.0e3
123456789012345678901234567890
1.50
1 - -1
!true || false && true
!(1 > 2) && 2 >= 2 && 1 != 2 && 1 <= 3 && "a" == "a"
1 == "1"
[1] == [1]
{ a = 1 } == { a = 1 }
null == null
true ? "a" : 1
false ? ["a"] : []
true ? { a = 1 } : {}
true ? [1, "a"] : ["b"]
false ? null : "x"
true ? null : "x"
and(true, false)
base64decode("aGVsbG8=")
base64encode("hello é")
basename("/a/b/c")
basename("/a/b/")
basename("")
basename("///")
can(regex("a", "b"))
can(upper("x"))
ceil(1.2)
ceil(-1.2)
chomp("hello\n\n")
chomp("hello\r\n")
chunklist(["a", "b", "c"], 2)
chunklist(["a", "b"], 0)
cidrhost("10.12.127.0/20", 16)
cidrhost("10.12.127.0/20", -1)
cidrhost("fd00:fd12:3456:7890:00a2::/72", 34)
cidrnetmask("172.16.0.0/12")
cidrnetmask("1::/64")
cidrsubnet("172.16.0.0/12", 4, 2)
cidrsubnet("fd00:fd12:3456:7890::/56", 16, 162)
cidrsubnets("10.1.0.0/16", 4, 4, 8, 4)
coalesce(null, "a", "b")
coalesce("", "a")
coalesce(null, 1, "b")
coalescelist([], ["a"], ["b"])
compact(["a", "", "b", "c"])
concat(["a"], ["b", 1])
concat(split(",", "a,b"), split(",", "c"))
contains(["a", "b"], "b")
contains([1], "1")
convert("42", number)
convert(["a", 1], list(string))
convert(["b", "a", "a"], set(string))
convert({ a = 1 }, map(string))
convert({ a = 1, c = 2 }, object({ a = string }))
convert(["1", true], tuple([number, string]))
csvdecode("a,b\n1,2\n\"x,y\",\"q\"\"z\"\n")
dirname("/a/b/c")
dirname("a")
dirname("/a")
dirname("a//b/../c")
distinct(["a", "b", "a"])
divide(10, 4)
element(["a", "b"], 3)
element(["a", "b"], -1)
equal("a", "a")
flatten([["a", []], [["b"], "c"]])
floor(-1.5)
format("Hello, %s! %d %05d %5.2f %-5s| %5s|%q", "é", 42, 42, 3.14159, "a", "b", "q\"")
format("%v %t %x %X %o %b %e %g %%", [1, "a"], true, 255, 255, 8, 5, 12345.678, 0.5)
format("%v %v %v %v", 1000000, 123456, 0.00001, 1.5)
format("%[2]s %[1]s %#v %+d % d", "a", "b", 1, 2)
format("%.3s|%10.3f|%-10d|%010.2f|%+.1e", "abcdef", 3.14159, 5, -2.5, 12345)
format("%v %#v", null, "x")
format("%g %G %.3g", 1.0e20, 1.0e-7, 1234.5678)
formatdate("DD MMM YYYY hh:mm ZZZ", "2018-01-02T23:12:01Z")
formatdate("EEEE, DD-MMM-YY hh:mm:ss ZZZ", "2018-01-02T23:12:01-08:00")
formatdate("'year' YYYY, h:mmaa HH AA M D ZZZZ ZZZZZ Z ''", "2006-01-02T03:04:05+05:30")
formatlist("%s-%s", ["a", "b"], "c")
formatlist("x")
formattimestamp("YYYY-MM-DD'T'hh:mm:ssZ", 1690328596)
formattimestamp("X", "2015-10-21T00:00:00Z")
formattimestamp("X", 7)
greaterthan(1, 2)
greaterthanorequalto(2, 2)
hasindex(["a"], 0)
hasindex(["a"], 1)
indent(2, "a\nb\n")
index(["a", "b"], 1)
index(convert({ a = "x" }, map(string)), "a")
indexof(["a", "b"], "b")
int(6.9)
int(-6.9)
join("-", ["a", "b"], ["c"])
join(",", [1, true])
jsondecode("{\"a\": [1, 2.5, null, true, \"x\"]}")
jsonencode({ b = [1, "<&>"], a = null, "c d" = 1.5, u = "é" })
jsonencode("a\tb\u2028")
keys({ b = 1, a = 2 })
length(["a", "b"])
length(convert({ a = 1 }, map(number)))
lessthan(1, 2)
lessthanorequalto(1, 2)
log(16, 2)
log(10, 10)
lookup({ a = "x" }, "a", "y")
lookup({ a = "x" }, "b", "y")
lookup(convert({ a = "x" }, map(string)), "b", 1)
lower("HELLO É")
max(1, 3, 2)
md5("hello")
merge({ a = 1, b = 2 }, { b = "x", c = 3 })
merge({ a = 1 }, null)
min(1, 3, 0.5)
modulo(10, 3)
multiply(3, 1.5)
negate(4)
not(true)
notequal(1, 2)
or(true, false)
parseint("ff", 16)
parseint("-101", 2)
parseint("zZ", 62)
pow(2, 10)
pow(2, 0.5)
range(3)
range(-3)
range(1, 4)
range(4, 1)
range(0, 1, 0.25)
regex("[a-z]+", "53453453.345345aaabbbccc23454")
regex("(\\d\\d\\d\\d)-(\\d\\d)-(\\d\\d)?", "2019-02-")
regex("^(?:(?P<scheme>[^:/?#]+):)?(?://(?P<authority>[^/?#]*))?", "https://docs.docker.com/build/")
regexall("[a-z]+", "1234abcd5678efgh9")
regexall("([a-z])(\\d)?", "a1b")
regexall("x", "abc")
regex_replace("-ab-axxb-", "a(x*)b", "$1")
regex_replace("-ab-axxb-", "a(?P<n>x*)b", "$${n}W")
regex_replace("abc", "b", "$$x$9")
regex_replace("aXbXc", "(?i)x", "[$0]")
replace("hello world", "l", "L")
replace("abc", "", "-")
reverse("hello é e\u0301")
reverselist(["a", "b", 1])
sanitize("https://foo.bar/x y-z_1")
semvercmp("1.2.3", ">= 1.0.0")
semvercmp("1.2.3", "~1.2 || ^2")
semvercmp("2.0.0-rc1", ">=1.0.0")
semvercmp("v1.4", "1.x")
semvercmp("1.2.3", "1.0 - 2.0")
semvercmp("0.2.5", "^0.2.3")
semvercmp("0.3.0", "^0.2.3")
semvercmp("1.3.0", "~1.2.3")
semvercmp("1.2.9", "!=1.2.9, >1")
semvercmp("3.0.0", "*")
semvercmp("1.3.0", ">1.2")
semvercmp("1.2.9", ">1.2")
semvercmp("1.2.9", "<=1.2")
semvercmp("2.0.0-beta.2", ">2.0.0-beta.1")
sethaselement(["a", "b"], "a")
setintersection(["a", "b"], ["b", "c"])
setproduct(["a", "b"], [1, 2])
setproduct(convert(["b", "a"], set(string)), ["x"])
setsubtract(["a", "b", "c"], ["b"])
setsymmetricdifference(["a", "b"], ["b", "c"])
setunion(["b", "a"], ["c", "a"])
setunion([3, 1], [2, 10])
sha1("hello")
sha256("hello")
sha512("hello")
signum(-5)
slice(["a", "b", "c", "d"], 1, 3)
sort(["c", "B", "a"])
split(",", "a,b,,c")
split("", "abc")
strlen("hello é e\u0301")
strlen("👨‍👩‍👧🇩🇪")
substr("hello world", 6, 5)
substr("hello", -3, -1)
substr("hello", 1, 0)
subtract(5, 7.5)
timeadd("2017-11-22T00:00:00Z", "10m")
timeadd("2017-11-22T00:00:00+01:00", "-1h30m5s")
title("hello wORLD's foo-bar")
trim("?!hello?!", "!?")
trimprefix("helloworld", "hello")
trimspace("  hello\n\n")
trimsuffix("helloworld", "world")
try(regex("a", "b"), "x")
try({ a = 1 }.b, 2)
unixtimestampparse(1690328596)
unixtimestampparse(-86400)
upper("hello é")
urlencode("foo:bar@localhost?foo=bar&x=a b/c~*")
uuidv5("dns", "www.example.com")
uuidv5("6ba7b810-9dad-11d1-80b4-00c04fd430c8", "x")
values({ b = 1, a = "x" })
zipmap(["a", "b"], [1, 2])
[for x in ["a", "b"]: upper(x)]
[for i, x in ["a", "b"]: "${i}${x}" if i > 0]
[for k, v in { b = 1, a = 2 }: "${k}=${v}"]
{ for x in ["a", "b"]: x => upper(x) }
{ for x in ["a", "b", "a"]: x => 1... }
{ for k, v in { a = 1 }: v => k }
[for x in convert(["b", "a"], set(string)): x]
[{ n = 1 }, { n = 2 }][*].n
[{ n = [1] }, { n = [2] }][*].n[0]
[{ n = 1 }].*.n
{ n = 1 }[*].n
null[*].n
[["a"], ["b"]].*.0
[1, 2, 3][1]
["x"].0
{ a = { b = "c" } }.a.b
{ a = { "b c" = "d" } }.a["b c"]
{ (upper("a")) = 1, "b" : 2, c = 3 }
{ "${"x"}y" = 1 }
"a${1 + 1}b${true}c"
"${["x"]}"
"x ${"nested ${"deep ${1}"}"} y"
"$${a} %%{b} $a %b $$ %% \\ \" \t \u00e9 \U0001F600"
"%{ if true }yes%{ else }no%{ endif }"
"a %{ if false ~} yes %{ endif ~} b"
"%{ for x in ["a", "b"] }[${x}]%{ endfor }"
"%{ for i, x in ["a", "b"] ~} ${i}:${x} %{~ endfor }"
"  ${~ "x" ~}  y"
(1 + 2) * 3
max([1, 5, 3]...)
join(" ", [for t in ["a", "b"]: "--tag ${t}"])
title("x") == "X" ? "yes" : "no"
"e\u0301" == "é"
false ? 1 : false ? 2 : true ? 3 : 4
false ? 1 : true ? false ? 2 : 3 : 4
(true ? false : true) ? 1 : 2
TAG == "v2" ? "two" : TAG == "v1" ? "one" : null
1 + 2 * 3 == 7 && 8 / 2 - 1 > 2 || false
-numbers[0] + 1
greet("you")
total(1, 2, 3)
TAG
LIST[1]
typed.a
length(numbers)
target.base.args.A
target.base.tags[0]
target.base.dockerfile
CONSTANT
BAKE_CMD_CONTEXT
"""

DECLARATIONS = r"""
variable "TAG" { default = "v1" }
variable "LIST" { default = ["a", "b"] }
variable "EMPTY" {}
variable "typed" {
  type = object({ a = string, b = optional(number) })
  default = { a = 1 }
  description = "an object"
}
variable "numbers" {
  type = list(number)
  default = ["1", 2]
  validation {
    condition = length(numbers) > 1
    error_message = "too few: ${length(numbers)}"
  }
}
function "greet" {
  params = [name]
  result = "hello ${name} ${TAG}"
}
function "sum" {
  params = [a, b]
  result = a + b
}
function "total" {
  params = [first]
  variadic_params = rest
  result = "${sum(first, length(rest))}:${join("+", rest)}"
}
CONSTANT = "c-${TAG}"
target "base" {
  dockerfile = "Dockerfile.${TAG}"
  args = { A = greet("base") }
  tags = ["base:${TAG}"]
}
"""

HEREDOCS = r"""
target "heredocs" {
  dockerfile-inline = <<EOT
FROM alpine
RUN echo "$${HOME} ${TAG}" \
  && true
%{ for x in ["a", "b"] ~}
COPY ${x} /
%{ endfor ~}
EOT
  args = {
    flush = <<-EOT
        two
      none ${TAG}

          four
      EOT
    empty = <<EOT
EOT
    directive = <<-EOT
      %{ if TAG == "v1" }
      yes
      %{ else }
      no
      %{ endif }
      ${~ TAG ~}
      end
      EOT
  }
}
"""


def expressions() -> list[str]:
    """The expressions, one a line."""
    return [each for each in EXPRESSIONS.splitlines() if each]


def all_expressions() -> str:
    """A bake file with a target whose arguments are the values of all expressions, as JSON."""
    lines = (f"    e{at} = jsonencode({each})" for at, each in enumerate(expressions()))
    return DECLARATIONS + HEREDOCS + 'target "default" {\n  args = {\n' + "\n".join(lines) + "\n  }\n}\n"


KEYS = r"""
variable "VERSION" { default = "1.2.3" }
variable "PUSH" { default = false }
variable "NOTHING" { default = null }
variable "COUNT" {
  type = number
  default = 3
}
group "default" {
  description = "everything"
  targets = ["all", "child", "matrix"]
}
group "nested" { targets = ["default", "linked"] }
target "_common" {
  platforms = ["linux/amd64", "linux/arm64"]
  args = { A = "common", B = "b", N = null }
  labels = { l = "common", "org.example/x" = "$${y}" }
  tags = ["common"]
  annotations = ["index:a=1"]
  cache-from = ["type=gha,scope=a", "user/app:cache", { type = "local", src = "cache" }]
  cache-to = ["type=inline"]
  secret = ["id=s,src=secret.txt", { id = "e", env = "HOME" }]
  ssh = ["default"]
  ulimits = ["nofile=1024:1024"]
  entitlements = ["security.insecure"]
  extra-hosts = { h = "10.0.0.1" }
  no-cache-filter = ["a"]
  attest = ["type=provenance,mode=max", { type = "sbom", disabled = true }]
  contexts = { base = "docker-image://alpine:3", gone = "./x" }
}
target "_second" {
  args = { B = "second", C = "c" }
  output = ["type=image,push=true", "out"]
  cache-from = ["user/app:cache", ""]
}
target "all" {
  description = "all keys"
  inherits = ["_common", "_second"]
  context = "./dir/../sub"
  dockerfile = "docker/Dockerfile"
  dockerfile-inline = "FROM scratch\n"
  target = "release"
  args = { A = "own ${VERSION}", D = COUNT + 1, E = true }
  contexts = { gone = "", other = "../other", dep = "target:linked" }
  tags = ["app:${VERSION}", PUSH ? "app:latest" : "", "app:${VERSION}"]
  labels = { l = null, m = "own" }
  annotations = ["manifest:b=$${x}", "index:a=1"]
  cache-from = [{ type = "registry", ref = "user/app:second" }]
  cache-to = ["type=registry,ref=user/app:cache,mode=max", "type=local,dest=cache"]
  secret = [{ id = "s", src = "other.txt" }]
  ssh = [{ id = "default" }]
  output = [{ type = "oci", dest = "image.tar" }, "type=docker"]
  pull = true
  no-cache = VERSION == "1.2.3"
  network = "host"
  no-cache-filter = ["b", "a"]
  shm-size = "128m"
  ulimits = ["nproc=10"]
  resources = { memory = "1g", cpu-shares = 512 }
  call = "build"
  entitlements = ["network.host"]
  extra-hosts = { i = "10.0.0.2" }
  attest = ["type=sbom,generator=x"]
}
target "linked" {
  dockerfile = ""
  args = { PARENT = target._second.args.C }
  tags = NOTHING
}
target "child" {
  inherits = ["all"]
  tags = concat(target.linked.tags == null ? [] : target.linked.tags, ["child"])
  platforms = ["linux/arm64"]
  output = []
  resources = { cpu-quota = "1000" }
}
target "matrix" {
  name = "m-${os}-${replace(v.number, ".", "_")}"
  matrix = {
    os = ["alpine", "debian"]
    v = [{ number = "1.0", extra = [] }, { number = "2.0", extra = ["latest"] }]
  }
  inherits = ["_second"]
  target = os
  args = { VERSION = v.number }
  tags = concat(["m:${os}-${v.number}"], [for each in v.extra : "m:${each}-${os}"])
}
target "user" {
  contexts = { m = "target:m-alpine-1_0" }
  tags = ["user:${length(target.all.platforms == null ? [] : target.all.platforms)}"]
}
"""

OVERRIDE = r"""
{
  "// note": "a comment would be //",
  "//": "a comment",
  "variable": {"VERSION": {"default": "2.0.${COUNT}"}, "EXTRA": {"type": "list(string)", "default": ["x"]}},
  "function": {"shout": {"params": ["t"], "result": "${upper(t)}!"}},
  "group": {"default": {"targets": ["json"]}},
  "target": {
    "json": {
      "inherits": ["_second"],
      "target": "stage",
      "args": {"S": "${shout(\"a, b\")}", "${lower(\"K\")}": "${EXTRA[0]}", "plain": "$${x} \"q\" \\ é\n", "n": 5},
      "tags": ["json:${VERSION}", "${EXTRA[0]}"],
      "secret": [{"id": "s", "src": "secret.txt"}]
    },
    "linked": [{"args": {"JSON": "${target.json.args.S}"}}, {"labels": {"second": "block"}}]
  }
}
"""

COMPOSE = r"""
name: x
x-common: &common
  args: &args
    COMMON: 1.10
    YES: yes
    T: true
    NUL:
    OCT: 010
services:
  web:
    image: "registry.example/web:${TAG:-latest}"
    environment: { FROM_SERVICE: service }
    build:
      <<: *common
      context: ./web
      dockerfile: ${FILE-Dockerfile.web}
      target: prod
      args:
        <<: *args
        A: "${EMPTY:-x}${HOME_DIR}$$y"
        FROM_ENV:
        FROM_SERVICE:
        DOTENV: "${DOTENV}"
      labels: ["a=b", "c"]
      additional_contexts: ["base=service:db.one", "src=./src"]
      cache_from: ["user/app:cache", "type=local,src=cache"]
      cache_to: ["type=inline"]
      ssh: [default]
      secrets: [token, { source: env }]
      tags: ["web:1", "web:2"]
      platforms: ["linux/amd64", "linux/arm64"]
      network: host
      shm_size: 64m
      no_cache: true
      pull: "true"
      extra_hosts: ["h=1.2.3.4", "i:::1"]
      ulimits: { nofile: { soft: 10, hard: 20 } }
      sbom: true
      provenance: mode=max
      x-bake:
        tags: web:3 web:4
        cache-to: type=registry,ref=x
        platforms: linux/riscv64
        output: [type=docker]
        no-cache: false
        secret: ['id=s,src=secret.txt']
        contexts: { more: ./more }
    profiles: [never]
  db.one:
    build: ./db
    image: db
  inline:
    build:
      dockerfile_inline: |
        FROM alpine
        RUN echo $$x
      args: ["K=V", "FROM_ENV"]
  extended:
    extends: web
    build: { target: other, args: { A: z } }
    image: ext
  plain: { image: redis }
secrets:
  token: { file: ./secret.txt }
  env: { environment: HOME }
"""

COMPOSE_OVERRIDE = """
services:
  web:
    build: { args: ["A=over"], tags: ["web:5"] }
  db.one:
    build: { context: ./db, target: t }
"""

DOTENV = """
# a comment
DOTENV="from ${HOME_NAME}"
export HOME_NAME=home # not a part
FROM_ENV=dot
LITERAL='$x'
"""

BESIDE_COMPOSE = """
target "web" {
  tags = ["hcl"]
  args = { H = "1" }
}
target "n" { inherits = ["db_one"] }
"""

SETS = (
    ("*.platform=linux/amd64",),
    ("all.tags=a", "all.tags=b"),
    ("all.tags+=c", "*.args.A=set", "all.labels.l=x"),
    ("_common.args.B=parent", "m-*.target=x"),
    (
        "all.cache-from=",
        "all.cache-to=type=inline",
        "all.output=type=tar,dest=x.tar",
        "child.output+=type=local,dest=y",
    ),
    ("all.secret=id=z,env=HOME", "all.ssh+=default", "all.attest=type=provenance,mode=min", "all.annotation=x=y"),
    ("*.push=true",),
    ("*.push=false", "*.load=true"),
    ("all.no-cache=false", "all.pull=0", "all.network=none", "all.shm-size=1g", "all.call=check", "all.context=x"),
    ("all.secret.s=env=HOME", "all.resource.memory=2g", "all.ulimit=core=0", "all.extra-host.h=1.1.1.1"),
    ("all.entitlement=", "all.contexts.base=", "all.dockerfile=D", "child.no-cache-filter=z", "all.platform="),
)
"""Overrides whose plans are compared, each group by itself."""


class Plan(NamedTuple):
    """Bake files, and what is asked of them."""

    files: Mapping[str, str]
    names: tuple[str, ...]
    sets: tuple[str, ...] = ()

    def read(self) -> tuple[str, ...]:
        """The files that are named."""
        return tuple(each for each in self.files if not each.startswith("."))


PLANS: Mapping[str, Plan] = {
    "expressions": Plan({"docker-bake.hcl": all_expressions()}, ("default", "heredocs")),
    "keys": Plan({"docker-bake.hcl": KEYS}, ("nested", "user")),
    "files": Plan({"docker-bake.hcl": KEYS, "docker-bake.override.json": OVERRIDE}, ("nested", "user", "json")),
    "compose": Plan({".env": DOTENV, "compose.yaml": COMPOSE}, ("default",)),
    "compose-override": Plan({"compose.yaml": COMPOSE, "docker-compose.yml": COMPOSE_OVERRIDE}, ("default",)),
    "compose-hcl": Plan({"compose.yaml": COMPOSE, "docker-bake.hcl": BESIDE_COMPOSE}, ("default", "n")),
    **{f"set-{at}": Plan({"docker-bake.hcl": KEYS}, ("nested", "user"), each) for at, each in enumerate(SETS)},
}
"""What is compared with the plans that buildx prints."""
NO_ENVIRONMENT = "BUILDX_BAKE_DISABLE_VARS_ENV_LOOKUP"
RECORDED = Path(__file__).parent / "bake_plans.json"
"""The targets that buildx printed, by plan: ``python tests/bake_inputs.py`` records them."""


def printed(plan: Plan, directory: Path, buildx: str) -> dict[str, Any]:
    """The targets that ``buildx bake --print`` prints for ``plan``, with its files written to ``directory``."""
    (directory / ".env").unlink(missing_ok=True)
    for name, text in plan.files.items():
        (directory / name).write_text(text)
    for name in ("secret.txt", "other.txt"):
        (directory / name).write_text("x")
    (directory / "cache").mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as agent:  # it looks whether an agent listens
        address = str(directory / "agent")
        agent.bind(address)
        agent.listen()
        files = [word for name in plan.read() for word in ("-f", name)]
        sets = [word for each in plan.sets for word in ("--set", each)]
        command = [buildx, "bake", "--print", "--progress=quiet", *files, *sets, *plan.names]
        environ = {"PATH": os.environ["PATH"], "HOME": str(directory), "SSH_AUTH_SOCK": address, NO_ENVIRONMENT: "1"}
        found = subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True, check=True)
    os.unlink(address)
    return comparable(json.loads(found.stdout)["target"])


def comparable(targets: dict[str, Any]) -> dict[str, Any]:
    """The targets with numbers and truths as texts, and what only protects templates in printed texts removed."""
    text = json.dumps(targets, sort_keys=True).replace("$${", "${").replace("%%{", "%{")
    found: dict[str, Any] = json.loads(text)
    for target in found.values():
        for each in target.get("attest", ()):
            each.update((key, "true") for key, value in each.items() if value is True)
        if "resources" in target:
            target["resources"] = {key: str(value) for key, value in target["resources"].items()}
    return found


if __name__ == "__main__":
    import sys
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        plans = {name: printed(plan, Path(place), sys.argv[1]) for name, plan in PLANS.items()}
    RECORDED.write_text(json.dumps(plans, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
