#!/bin/sh
#
# Converts the subnet.env of flanneld to options for dockerd.
#
# The input is parsed, never executed. The output is quoted so that systemd
# (EnvironmentFile=) and a shell (.) read the same values.
# Needs a POSIX shell, cat, env, sed and sort.

# With the C locale, [A-Z] means ASCII and the order of the output is fixed.
LC_ALL=C
export LC_ALL

usage() {
	cat >&2 <<-USAGE
		Usage: $0 [-f FLANNEL-ENV-FILE] [-d DOCKER-ENV-FILE] [-i] [-c] [-m] [-k COMBINED-KEY]

		Convert the subnet file of flanneld to options for dockerd.

		  -f  file to read (default: /run/flannel/subnet.env)
		  -d  file to write (default: /run/docker_opts.env)
		  -i  write one variable for each option: DOCKER_OPT_BIP, DOCKER_OPT_IPMASQ, DOCKER_OPT_MTU
		  -c  write one variable with all options
		  -k  name of the variable with all options (default: DOCKER_OPTS)
		  -m  leave out --ip-masq

		Without -i and -c, both forms are written. DOCKER_OPT_* variables in the environment
		are included, and the options are appended to the value of the -k variable there.
	USAGE
	exit 1
}

die() {
	printf '%s\n' "$2" >&2
	exit "$1"
}

# read_flannel copies the FLANNEL_* assignments on stdin to variables of the same
# name and counts them. The last of several wins. All other lines are ignored.
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

# check exits if a value could become more than one word of dockerd's command line.
check() {
	case $2 in
	*[!A-Za-z0-9.:/_-]*) die 1 "Invalid value of $1: $2" ;;
	esac
}

# assignment prints NAME="VALUE". The four characters that it escapes are special
# between double quotes, for a shell and for systemd.
assignment() {
	printf '%s="%s"\n' "$1" "$(printf '%s\n' "$2" | sed 's/[\\"$`]/\\&/g')"
}

# warn_about_route warns if the host has a route to its own subnet through a gateway.
# Packets would not reach the bridge that dockerd creates for the subnet.
#
# flannel has this check since v0.18 and exits with an error after it has written the
# output. An error here would stop flanneld, of which this is an ExecStartPost, and only
# flanneld removes such a stale route. Therefore this is only a warning.
# The destination of the route must be equal, not just contained in the line.
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
[ $# -eq 0 ] || echo "$0: ignored arguments: $*" >&2
[ "$individual$combined" ] || individual=yes combined=yes
case $key in
'' | [!A-Za-z_]* | *[!A-Za-z0-9_]*) die 1 "$0: -k: $key: must be the name of a variable" ;;
esac

# Without the file, the subnet is unknown. An empty output would make dockerd choose
# a subnet of its own.
if [ ! -e "$input" ]; then
	die 1 "$0: $input does not exist: is flanneld running? $output was not changed"
elif [ -d "$input" ]; then
	die 1 "$0: $input is a directory: must be a file; $output was not changed"
fi
read_flannel <"$input" || exit 2

# A file without FLANNEL_ variables is most likely the output of an earlier run with
# -d subnet.env. If input and output are the same file, it is left unchanged: an empty
# file would take the subnet from dockerd.
if [ "$found" -eq 0 ] && [ -s "$input" ]; then
	echo "$0: no FLANNEL_ variable in $input" >&2
	# shellcheck disable=SC3013 # dash, bash and busybox all have -ef
	[ "$input" -ef "$output" ] && exit 0
fi

check FLANNEL_SUBNET "${FLANNEL_SUBNET-}"
check FLANNEL_MTU "${FLANNEL_MTU-}"

# Exported, so that the loop below also finds them among the preset variables.
if [ "${FLANNEL_SUBNET-}" ]; then
	export DOCKER_OPT_BIP="--bip=$FLANNEL_SUBNET"
fi
if [ "${FLANNEL_MTU-}" ]; then
	export DOCKER_OPT_MTU="--mtu=$FLANNEL_MTU"
fi
if [ "$ipmasq" ]; then
	# Inverted, because exactly one of flanneld and dockerd must masquerade.
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
	# A line of a value with several lines can look like a variable.
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
