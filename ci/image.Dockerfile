# kanifold's own image, out of Debian's packages: ci/image builds it, docs/image.md describes it.
#
# The base, named debian, is Debian 13 with apt. Every stage that runs something is on the builder's own platform:
# packages of the target are unpacked, not installed, so no platform needs emulation.

FROM --platform=$BUILDPLATFORM debian AS tools
RUN apt-get update -q \
 && apt-get install -qy --no-install-recommends binutils busybox-static libcap2-bin python3 python3-pip python3-setuptools

# packages: unpacks Debian packages of the target platform into a root file system.
FROM tools AS packages
ARG TARGETARCH
ARG SUITES="trixie-security trixie-backports"
COPY --chmod=755 <<'SCRIPT' /usr/bin/unpack
#!/bin/sh
# unpack ROOT PACKAGE...   downloads the packages and unpacks them, without documentation that nobody reads in an image.
set -eu
root=$1
shift
mkdir -p "$root/var/lib/dpkg/status.d" /packages
cd /packages
apt-get -q download "$@"
for package in *.deb; do
  dpkg-deb --fsys-tarfile "$package" | tar -x -C "$root" --exclude=./usr/share/man --exclude=./usr/share/locale \
    --exclude=./usr/share/lintian --exclude=./usr/share/bash-completion --exclude=./usr/share/bug \
    --exclude='./usr/share/doc/*/*/*' --exclude='./usr/share/doc/*/[!c]*' --exclude='./usr/share/doc/*/ch*' --exclude='./usr/share/doc/*/con*'
  # As in distroless images: where scanners look for what an image is made of.
  { dpkg-deb -f "$package"; echo "Status: install ok installed"; } >"$root/var/lib/dpkg/status.d/$(dpkg-deb -f "$package" Package)"
done
rm -r /packages
SCRIPT
RUN <<SCRIPT
set -eu
case $TARGETARCH in ppc64le) arch=ppc64el ;; *) arch=$TARGETARCH ;; esac
archive=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -n 1)
archive=${archive%/}
for suite in $SUITES; do
  case $suite in *-security) from=$archive-security ;; *) from=$archive ;; esac
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $from $suite main"
done >/etc/apt/sources.list.d/more.list
# qemu and passt are those of backports, which are current.
printf 'Package: qemu-user passt\nPin: release n=trixie-backports\nPin-Priority: 900\n' >/etc/apt/preferences.d/target
# Only lists of the target's packages, and all as if nothing was installed.
mkdir -p /target/partial
cat >/etc/apt/apt.conf.d/99target <<CONF
APT::Architecture "$arch";
#clear APT::Architectures;
APT::Architectures { "$arch"; };
Dir::State::lists "/target";
Dir::State::status "/dev/null";
APT::Sandbox::User "root";
CONF
apt-get -q update
SCRIPT

FROM packages AS emulators
RUN <<SCRIPT
set -eu
unpack /all qemu-user
mkdir -p /image/usr/bin /image/usr/share/doc
# Those of the platforms that images are usually published for. Of 386 only where the processor does not run it.
case $TARGETARCH in
  amd64) names="aarch64 arm ppc64le riscv64 s390x" ;;
  arm64) names="arm i386 ppc64le riscv64 s390x x86_64" ;;
  *) names="aarch64 arm i386 ppc64le riscv64 s390x x86_64" ;;
esac
for name in $names; do
  case $TARGETARCH/$name in riscv64/riscv64 | ppc64le/ppc64le | s390x/s390x) continue ;; esac
  mv "/all/usr/bin/qemu-$name" /image/usr/bin/
done
mv /all/usr/share/doc/qemu-user /image/usr/share/doc/
mkdir -p /image/var/lib/dpkg
mv /all/var/lib/dpkg/status.d /image/var/lib/dpkg/
rm -r /all
SCRIPT

FROM packages AS system
RUN <<SCRIPT
set -eu
unpack /image base-files \
  libc6 libgcc-s1 zlib1g libbz2-1.0 liblzma5 libzstd1 libexpat1 libffi8 libsqlite3-0 libssl3t64 libuuid1 \
  libpython3.13-minimal libpython3.13-stdlib python3.13-minimal \
  libisal2 libyaml-0-2 python3-certifi python3-click python3-h11 python3-httpcore python3-httpx python3-idna \
  python3-isal python3-msgspec python3-rich python3-yaml python3-zstandard \
  uidmap libaudit1 libbsd0 libcap-ng0 libmd0 libpcre2-8-0 libselinux1 \
  passt ca-certificates \
  git libbrotli1 libcom-err2 libcurl3t64-gnutls libgmp10 libgnutls30t64 libgssapi-krb5-2 libhogweed6t64 libidn2-0 \
  libk5crypto3 libkeyutils1 libkrb5-3 libkrb5support0 libldap2 libnettle8t64 libnghttp2-14 libnghttp3-9 libngtcp2-16 \
  libngtcp2-crypto-gnutls8 libp11-kit0 libpsl5t64 librtmp1 libsasl2-2 libssh2-1t64 libtasn1-6 libunistring5
cd /image

# Of git what fetches over HTTP and unpacks; kanifold calls no command of git that is a script.
find usr/lib/git-core -mindepth 1 ! -name 'git-remote-http*' -delete
ln -s ../../bin/git usr/lib/git-core/git
rm -rf usr/bin/scalar usr/bin/git-shell usr/share/gitweb usr/share/perl5 usr/share/git-core etc/bash_completion.d

# Of Python and the C library what these programs use.
rm -rf usr/lib/python3*/ensurepip usr/lib/python3*/idlelib usr/lib/python3*/pydoc_data usr/lib/python3*/tkinter \
  usr/lib/python3*/test usr/lib/python3*/turtle* usr/lib/python3*/lib2to3 usr/share/python3 \
  usr/lib/python3*/lib-dynload/*_test* usr/lib/python3*/lib-dynload/xx* usr/lib/python3*/lib-dynload/_curses* usr/lib/python3*/lib-dynload/_dbm* usr/lib/python3*/lib-dynload/readline* \
  usr/lib/python3/dist-packages/zstandard/*cffi* usr/bin/getsubids usr/bin/pdb* usr/bin/pydoc* \
  usr/lib/*-linux-gnu*/gconv usr/lib/*-linux-gnu*/libmvec*
ln -sf python3.13 usr/bin/python3
rm -rf etc/apparmor.d etc/default etc/dpkg etc/profile.d etc/skel etc/update-motd.d usr/games usr/include usr/src usr/lib/systemd

# One file of all certificate authorities, as update-ca-certificates writes it.
mkdir -p etc/ssl/certs
find usr/share/ca-certificates -name '*.crt' | LC_ALL=C sort | while read -r each; do cat "$each"; echo; done |
  sed '/^$/d' >etc/ssl/certs/ca-certificates.crt
rm -r usr/share/ca-certificates usr/sbin/update-ca-certificates

# Users: root, and an ordinary one whose subordinate ids fit into the 65536 of a container that has a range of its own.
cat >etc/passwd <<PASSWD
root:x:0:0:root:/root:/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin
kanifold:x:1000:1000:kanifold:/home/kanifold:/sbin/nologin
PASSWD
printf 'root:x:0:\nnogroup:x:65534:\nkanifold:x:1000:\n' >etc/group
printf 'kanifold:1:999\nkanifold:1001:64535\n' | tee etc/subuid >etc/subgid
install -d -o 1000 -g 1000 -m 755 home/kanifold
install -d -m 1777 var/lib/kanifold workspace
# File capabilities, not set-user-id: root of a container lacks CAP_SYS_ADMIN, and a set-user-id newuidmap may then not
# write the map of a namespace that an ordinary user owns.
chmod u-s usr/bin/newuidmap usr/bin/newgidmap
setcap cap_setuid=ep usr/bin/newuidmap
setcap cap_setgid=ep usr/bin/newgidmap

python3 -m compileall -q --invalidation-mode unchecked-hash -s /image /image/usr/lib/python3.13 /image/usr/lib/python3
SCRIPT

# Every library that something in the image asks for is in it.
FROM system AS checked
RUN <<SCRIPT
set -eu
cd /image
find usr/lib* -name '*.so*' -printf '%f\n' | sort -u >/there
find usr/bin usr/lib* -type f \( -perm /111 -o -name '*.so*' \) -exec readelf -d {} + 2>/dev/null |
  sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | sort -u >/needed
missing=$(comm -13 /there /needed)
[ -z "$missing" ] || { echo "libraries that none of the packages has:" $missing >&2; exit 1; }
SCRIPT

# zlib-ng for Python, which Debian does not have: PyPI's wheel, or cross-compiled for platforms that there is none for.
FROM tools AS zlib-ng
ARG TARGETARCH
COPY <<REQUIREMENTS /requirements
zlib-ng==1.1.0 --hash=sha256:f80aab75aa43743df245c44d3c00223f4bdf4b46fd03c83a695234196c6f4ece --hash=sha256:3f52e33eac3b5b783f963eb50e654fa271a887382c68773e671b2f0e09df589d --hash=sha256:08a3a8468d4f130e3dc80d28ec42fcc7a878a57dfed616233e791066327d78a3
REQUIREMENTS
RUN <<SCRIPT
set -eu
site=/image/usr/lib/python3/dist-packages
install="pip install -q --no-deps --no-compile --require-hashes --target $site -r /requirements"
case $TARGETARCH in
  amd64) $install --only-binary=:all: --python-version=3.13 --platform=manylinux_2_28_x86_64 ;;
  arm64) $install --only-binary=:all: --python-version=3.13 --platform=manylinux_2_28_aarch64 ;;
  *)
    case $TARGETARCH in ppc64le) machine=powerpc64le arch=ppc64el ;; *) machine=$TARGETARCH arch=$TARGETARCH ;; esac
    dpkg --add-architecture "$arch"
    apt-get update -q
    apt-get install -qy --no-install-recommends cmake make python3-dev "gcc-$machine-linux-gnu" "libc6-dev-$arch-cross"
    (cd /tmp && apt-get -q download "libpython3.13-dev:$arch" && dpkg-deb -x libpython3.13-dev_*.deb /python)
    for each in "CMAKE_SYSTEM_NAME Linux" "CMAKE_SYSTEM_PROCESSOR $TARGETARCH" "CMAKE_C_COMPILER $machine-linux-gnu-gcc" \
      'BUILD_TESTING OFF CACHE BOOL ""' 'WITH_GTEST OFF CACHE BOOL ""'; do echo "set($each)"; done >/toolchain
    # Python and pip take the platform from here; nothing of the temporary paths may be left in the result.
    export CMAKE_TOOLCHAIN_FILE=/toolchain CC="$machine-linux-gnu-gcc" CFLAGS="-O2 -g0 -I/python/usr/include" \
      _PYTHON_HOST_PLATFORM="linux-$TARGETARCH" LDSHARED="$machine-linux-gnu-gcc -shared -Wl,--build-id=none" \
      SETUPTOOLS_EXT_SUFFIX=".cpython-313-$machine-linux-gnu.so"
    $install
    "$machine-linux-gnu-strip" --strip-unneeded "$site"/zlib_ng/*.so
    find "$site" -name direct_url.json -delete
    ;;
esac
python3 -m compileall -q --invalidation-mode unchecked-hash -s /image "$site"
SCRIPT

# kanifold itself, the same for every platform.
FROM tools AS kanifold-files
COPY <<REQUIREMENTS /requirements
asyncio-pool==0.6.0 --hash=sha256:bf4417be93c2776262d93decabbbd633579f7610947fb73d80857823689e1455
dockerfile-parse==2.0.1 --hash=sha256:bdffd126d2eb26acf1066acb54cb2e336682e1d72b974a40894fac76a4df17f6
REQUIREMENTS
RUN pip install -q --no-deps --no-compile --require-hashes --target /image/usr/lib/python3/dist-packages -r /requirements
COPY pyproject.toml README.md LICENSE /source/
COPY platforms /source/platforms
COPY executor /source/executor
COPY orchestrator /source/orchestrator
COPY --chmod=755 <<'SCRIPT' /image/usr/bin/kanifold
#!/usr/bin/python3 -sP
from orchestrator.__main__ import main

main()
SCRIPT
RUN <<SCRIPT
set -eu
site=/image/usr/lib/python3/dist-packages
pip install -q --no-index --no-deps --no-build-isolation --no-compile --target /installed /source
rm -r /installed/bin
cp -a /installed/. "$site/"
find "$site" -name direct_url.json -delete
python3 -m compileall -q --invalidation-mode unchecked-hash -s /image "$site"
SCRIPT

FROM scratch AS kanifold
COPY --from=checked /image/ /
COPY --from=emulators /image/ /
COPY --from=zlib-ng /image/ /
COPY --from=kanifold-files /image/ /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin LANG=C.UTF-8 KANIFOLD_ROOT=/var/lib/kanifold/store
VOLUME /var/lib/kanifold
WORKDIR /workspace
ENTRYPOINT ["kanifold"]
CMD ["--help"]

# debug: with a shell and tools, for CI systems that run a script in the image, and for looking around.
FROM packages AS shell
RUN <<SCRIPT
set -eu
unpack /image busybox-static openssh-client libcbor0.10 libedit2 libfido2-1 libtinfo6 libudev1 libcap2 libcap2-bin jq libjq1 libonig5
cd /image
rm -rf etc/init.d etc/default etc/ssh/ssh_config.d usr/lib/systemd usr/share/initramfs-tools
mkdir -p usr/bin
for applet in $(busybox --list); do
  [ -e "usr/bin/$applet" ] || [ -e "usr/sbin/$applet" ] || [ "$applet" = busybox ] || ln -s busybox "usr/bin/$applet"
done
SCRIPT

FROM kanifold AS debug
COPY --from=shell /image/ /

# kubernetes: with a client of the API, for builds that run in a cluster and have their platforms built by Jobs there.
FROM packages AS client
COPY <<REQUIREMENTS /requirements
kubernetes-asyncio==36.1.0 --hash=sha256:6d25915d1abff24fceda551a502208d986f674d72586297aa58bc7d55e7feaf3
REQUIREMENTS
RUN <<SCRIPT
set -eu
unpack /image python3-aiohappyeyeballs python3-aiohttp python3-aiosignal python3-attr python3-dateutil python3-frozenlist \
  python3-multidict python3-propcache python3-six python3-urllib3 python3-yarl
site=/image/usr/lib/python3/dist-packages
pip install -q --no-deps --no-compile --require-hashes --target "$site" -r /requirements
python3 -m compileall -q --invalidation-mode unchecked-hash -s /image "$site"
SCRIPT

FROM kanifold AS kubernetes
COPY --from=client /image/ /
