#!/bin/sh
#
# Turns the subnet.env that flanneld writes into options for dockerd.
#
# Nothing that is read here is ever executed: the input is parsed, not sourced,
# and the output is quoted so that systemd (EnvironmentFile=) and a shell (.)
# both read back exactly what went in. Needs a POSIX shell, cat, env, sed and sort.

# Plain bytes: [A-Z] means ASCII, and the order of the output is fixed.
LC_ALL=C
export LC_ALL

usage() {
	cat >&2 <<-USAGE
		Usage: $0 [-f FLANNEL-ENV-FILE] [-d DOCKER-ENV-FILE] [-i] [-c] [-m] [-k COMBINED-KEY]

		Generate Docker daemon options from the flannel environment file.

		  -f  file to read                (default: /run/flannel/subnet.env)
		  -d  file to write               (default: /run/docker_opts.env)
		  -i  individual options only     (DOCKER_OPT_BIP, DOCKER_OPT_IPMASQ, DOCKER_OPT_MTU)
		  -c  combined options only       (one variable with all of them)
		  -m  leave out the --ip-masq option
		  -k  name of the combined variable (default: DOCKER_OPTS)

		With neither -i nor -c both forms are written. Variables named DOCKER_OPT_*
		and the combined one are taken over from the environment when they are set.
	USAGE
	exit 1
}

die() {
	printf '%s\n' "$2" >&2
	exit "$1"
}

# read_flannel takes the FLANNEL_* assignments on stdin over into variables of
# the same name, the last one winning, and counts them. Everything else in the
# file is somebody else's.
read_flannel() {
	found=0
	while read -r line || [ -n "$line" ]; do
		line=${line%"$cr"}
		line=${line#export }
		value=${line#*=}
		case $value in
		\"*) value=${value#?} value=${value%%\"*} ;;
		\'*) value=${value#?} value=${value%%\'*} ;;
		*) value=${value%%[[:space:]]*} ;;
		esac
		case $line in
		FLANNEL_SUBNET=*) FLANNEL_SUBNET=$value ;;
		FLANNEL_MTU=*) FLANNEL_MTU=$value ;;
		FLANNEL_IPMASQ=*) FLANNEL_IPMASQ=$value ;;
		FLANNEL_*=*) ;;
		*) continue ;;
		esac
		found=$((found + 1))
	done
}

# check refuses a value that could be more than one word of dockerd's command line.
check() {
	case $2 in
	*[!A-Za-z0-9.:/_-]*) die 1 "Invalid value of $1: $2" ;;
	esac
}

# assignment prints NAME="VALUE". These four characters are special between
# double quotes, to a shell and to systemd alike.
assignment() {
	printf '%s="%s"\n' "$1" "$(printf '%s\n' "$2" | sed 's/[\\"$`]/\\&/g')"
}

# warn_about_route says so when the host reaches its own subnet through somebody
# else, which would keep packets from the bridge that dockerd puts there.
#
# flannel has this check since v0.18 and fails because of it, after the output is
# written; v0.11 has no check. Failing here does harm: as ExecStartPost it takes
# flanneld down, the one that would clean up a stale route. So: warn, and succeed.
# The destination is compared as a whole, not as a part of any line.
warn_about_route() {
	case $FLANNEL_SUBNET in
	*.*.*.*/*) ;;
	*) return ;;
	esac
	command -v ip >/dev/null 2>&1 || return
	address=${FLANNEL_SUBNET%/*}
	host=${address##*.}
	case $host in
	'' | 0* | ????* | *[!0-9]*) return ;;
	esac
	network=${address%.*}.$((host - 1))/${FLANNEL_SUBNET#*/}
	ip -4 route show "$network" 2>/dev/null | while read -r line; do
		case $line in
		"$network "*"via "*) echo "Your routing table already contains the subnet: $line" >&2 ;;
		esac
	done
}

input=/run/flannel/subnet.env
output=/run/docker_opts.env
key=DOCKER_OPTS
individual=
combined=
ipmasq=yes
cr=$(printf '\r')

while getopts f:d:icmk:h option; do
	case $option in
	f) input=$OPTARG ;;
	d) output=$OPTARG ;;
	i) individual=yes ;;
	c) combined=yes ;;
	m) ipmasq= ;;
	k) key=$OPTARG ;;
	*) usage ;;
	esac
done
shift $((OPTIND - 1))
[ $# -eq 0 ] || echo "$0: ignoring: $*" >&2
[ "$individual$combined" ] || individual=yes combined=yes
case $key in
'' | [!A-Za-z_]* | *[!A-Za-z0-9_]*) die 1 "$0: -k: not a variable name: $key" ;;
esac

# Without the file nothing is known of the subnet, and to write that down would take
# it away from dockerd, which then makes a bridge of its own choice.
if [ ! -e "$input" ]; then
	die 1 "$0: $input does not exist: is flanneld running? $output stays as it is"
elif [ -d "$input" ]; then
	die 1 "$0: $input is a directory; $output stays as it is"
fi
read_flannel <"$input" || exit 2

# A file with other things only is most likely the output of an earlier run
# that was given -d subnet.env. When it is about to be written again, it already
# says what it should; emptying it would take the subnet away from dockerd.
if [ "$found" -eq 0 ] && [ -s "$input" ]; then
	echo "$0: no FLANNEL_ variable in $input" >&2
	# shellcheck disable=SC3013 # dash, bash and busybox all have -ef
	[ "$input" -ef "$output" ] && exit 0
fi

check FLANNEL_SUBNET "${FLANNEL_SUBNET-}"
check FLANNEL_MTU "${FLANNEL_MTU-}"

# Exported, so that they are listed below together with those that were preset.
if [ "${FLANNEL_SUBNET-}" ]; then
	export DOCKER_OPT_BIP="--bip=$FLANNEL_SUBNET"
fi
if [ "${FLANNEL_MTU-}" ]; then
	export DOCKER_OPT_MTU="--mtu=$FLANNEL_MTU"
fi
if [ "$ipmasq" ]; then
	# Inverted: exactly one of flanneld and dockerd masquerades.
	case ${FLANNEL_IPMASQ-} in
	'') ;;
	true) export DOCKER_OPT_IPMASQ=--ip-masq=false ;;
	false) export DOCKER_OPT_IPMASQ=--ip-masq=true ;;
	*) die 1 "Invalid value of FLANNEL_IPMASQ: $FLANNEL_IPMASQ" ;;
	esac
fi

lines=
options=
for name in $(env | sed -n 's/^\(DOCKER_OPT_[A-Za-z0-9_]*\)=.*/\1/p' | sort -u); do
	# A line that merely looks like a variable can be part of a longer value.
	eval "[ \"\${$name+set}\" ]" || continue
	eval "value=\$$name"
	lines=$lines$(assignment "$name" "$value")'
'
	options=$options${value:+ $value}
done

eval "preset=\${$key-}"
[ -z "$preset" ] || [ -z "$options" ] || preset="$preset "

[ "$individual" ] || lines=
[ -z "$combined" ] || lines=$lines$(assignment "$key" "$preset$options")'
'
printf %s "$lines" >"$output" || exit 2

[ -z "${FLANNEL_SUBNET-}" ] || warn_about_route
exit 0
