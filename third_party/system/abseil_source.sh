#!/bin/bash
# Unpacks Debian's source package of the Abseil that is installed into $1/src.
# It does not touch /etc/apt: the deb-src list and its state are private to the folder $1.
set -euo pipefail
work=${1:?folder to work in}
mkdir -p "$work/parts" "$work/lists/partial"
# The machine's own Debian sources, in either of apt's notations, as source packages.
for list in /etc/apt/sources.list.d/*.sources; do
  if [ -e "$list" ]; then sed 's/^Types:.*/Types: deb-src/' "$list" > "$work/parts/$(basename "$list")"; fi
done
for list in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
  if [ -e "$list" ]; then sed -n 's/^deb /deb-src /p' "$list" > "$work/parts/$(basename "$list" .list).list"; fi
done
apt=(apt-get -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts="$work/parts" -o Dir::State::lists="$work/lists"
  -o APT::Sandbox::User=root)
cd "$work"
"${apt[@]}" update -qq
# The source of the version that is installed: headers and library must agree.
"${apt[@]}" source -qq --download-only "abseil=$(dpkg-query -W -f '${source:Version}' libabsl-dev)"
dpkg-source --no-check -x abseil_*.dsc src
