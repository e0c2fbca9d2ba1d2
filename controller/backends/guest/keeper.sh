# Beside every command, deaf to signals since before it started: ends it at its timeout. Where files lie in memory
# (MEMORY_MIB is given), it also kills the largest process as long as all together hold more than that, as the kernel
# would, and ends the command whose files hold more than DISK_MIB and a little.
#   /bin/sh -c "$this_text" keeper "$this_text" STATE_FILE TIMEOUT_SECONDS MEMORY_MIB DISK_MIB [END]
# END, in seconds since boot, is what it tells itself where it begins anew. Its first start takes the time: before that,
# on a busy machine, seconds may go by that are not the command's.
# It writes `timeout`, `oom` or `disk MIB` to the state file, and then kills; at an end, everything but PID 1.
# A sleep that the command killed is slept again, by the clock since boot, which nobody sets. Where no process can be
# made, this shell ends, and begins anew without one.
trap 'exec /bin/sh -c "$1" keeper "$@"' EXIT
PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin

cgroup=/sys/fs/cgroup/memory.current
[ -r "$cgroup" ] || cgroup=/sys/fs/cgroup/memory/memory.usage_in_bytes
[ -z "$4" ] || [ -r "$cgroup" ] || set -- "$1" "$2" "$3" "" "$5" "$6"  # nothing to go by: the kernel's limit alone holds
read -r now rest </proc/uptime
[ -n "$6" ] || set -- "$1" "$2" "$3" "$4" "$5" "$((${now%.*} + $3)).${now#*.}"
memory=$((${4:-0} << 20)) disk=$((($5 + 8) << 20)) twice=

# What processes hold: anonymous memory, and shared memory that is no file of a work directory or the like.
look() {
    anon=0 shared=0
    while read -r word count; do
        case $word in
            anon | total_rss) anon=$count ;;
            shmem | total_shmem) shared=$count ;;
        esac
    done <"${cgroup%/*}/memory.stat"
    [ $((anon + shared)) -gt "$memory" ] || [ "$shared" -gt "$disk" ] || return 1
    held=$(files)
    [ -n "$held" ] || held=$((shared < disk ? shared : disk))  # without df, files are believed to be in their bounds
    [ $((anon + (shared > held ? shared - held : 0))) -le "$memory" ] || fault=oom
    [ "$held" -le "$disk" ] || fault="disk $((held >> 20))"
    [ -n "$fault" ]
}

# The bytes in every file system in memory that holds files of the command's.
files() {
    set --
    while read -r source place kind rest; do
        case $kind:$place in
            tmpfs:/dev | tmpfs:/dev/* | tmpfs:/proc/* | tmpfs:/sys/*) ;;
            tmpfs:*) set -- "$@" "$place" ;;
        esac
    done </proc/mounts
    [ $# -gt 0 ] && df -kP "$@" | {
        sum=0
        read -r title || exit
        while read -r source blocks used rest; do sum=$((sum + used)); done
        echo $((sum << 10))
    }
}

note() {
    printf '\n%s\n' "$fault" >>"$2"  # the command may have written half a line
}

kill_largest() {
    most=0 largest=
    for process in /proc/[0-9]*; do
        process=${process#/proc/}
        [ "$process" != 1 ] && [ "$process" != $$ ] && read -r size resident rest <"/proc/$process/statm" || continue
        [ "$resident" -le "$most" ] || most=$resident largest=$process
    done
    [ -z "$largest" ] || kill -s KILL "$largest"
}

# Compared in hundredths: in whole seconds a command would lose up to one of its own.
while read -r now rest </proc/uptime && [ "${now%.*}${now#*.}" -lt "${6%.*}${6#*.}" ]; do
    if [ -z "$4" ]; then
        pause=$((${6%.*} - ${now%.*}))
        [ "$pause" -gt 0 ] || pause=0.2
        sleep "$pause" || sleep 1
        continue
    fi
    pause=1 fault=
    read -r usage <"$cgroup"
    [ $((usage * 2)) -le "$memory" ] && [ $((usage * 2)) -le "$disk" ] || pause=0.2
    if { [ "$usage" -le "$memory" ] && [ "$usage" -le "$disk" ]; } || ! look; then
        twice=
    elif [ -z "$twice" ]; then  # files that went between two readings would count as memory: the second look tells
        twice=yes pause=0.1 fault=
    elif [ "$fault" = oom ]; then
        note "$@"
        kill_largest
        twice= pause=1 fault=  # the kernel takes its time to free what it held
    else
        break
    fi
    sleep "$pause" || sleep 1
done
fault=${fault:-timeout}
trap 'kill -s KILL -- -1' EXIT
note "$@"
[ "$fault" = timeout ] || exit
kill -s TERM -- -1
sleep 5
