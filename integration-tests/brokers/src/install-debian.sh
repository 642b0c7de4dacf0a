#!/bin/sh
# Installs Debian packages without letting them start a service. Run as root: install-debian.sh PACKAGE...
#
# A package's own service would take the well-known ports and outlive us. Debian asks /usr/sbin/policy-rc.d before it
# starts one; ours says no for as long as the installation takes, and what was there before is put back as it was.
set -eu
policy=${THROUGHLINE_POLICY_FILE:-/usr/sbin/policy-rc.d}
saved=$policy.throughline-saved
mark='# throughline: no service starts during an installation'

restore() {
    if grep -qsF "$mark" "$policy"; then rm -f "$policy"; fi
    if [ -e "$saved" ] || [ -L "$saved" ]; then mv -f "$saved" "$policy"; fi
}

# What an installation that was killed has left.
restore

export DEBIAN_FRONTEND=noninteractive
apt-get -o DPkg::Lock::Timeout=300 update

# An interrupt halfway through dpkg would leave a broken system: whoever sends one waits until this is done.
trap '' INT TERM HUP
trap restore EXIT
if [ -e "$policy" ] || [ -L "$policy" ]; then mv "$policy" "$saved"; fi
printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >"$policy"
chmod 755 "$policy"
apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"
