# Beside every command, deaf to signals since before it started: ends it at its timeout, and where files lie in memory
# (MEMORY_MIB is given) as soon as its processes hold more than that, or its files more than DISK_MIB and a little.
#   /bin/sh -c "$this_text" keeper "$this_text" STATE_FILE END MEMORY_MIB DISK_MIB       (END: seconds since boot)
# It writes `timeout`, `oom` or `disk MIB` to the state file, and then kills everything but PID 1.
# A sleep that the command killed is slept again, by the clock since boot, which nobody sets. Where no process can be
# made, this shell ends, and begins anew without one.
trap 'exec /bin/sh -c "$1" keeper "$@"' EXIT
PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin

cgroup=/sys/fs/cgroup/memory.current
[ -r "$cgroup" ] || cgroup=/sys/fs/cgroup/memory/memory.usage_in_bytes
[ -z "$4" ] || [ -r "$cgroup" ] || set -- "$1" "$2" "$3" "" "$5"  # nothing to go by: the kernel's limit alone holds
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

while read -r now rest </proc/uptime && [ "${now%.*}" -lt "$3" ]; do
    if [ -z "$4" ]; then
        sleep $(($3 - ${now%.*}))
        continue
    fi
    pause=1 fault=
    read -r usage <"$cgroup"
    [ $((usage * 2)) -le "$memory" ] && [ $((usage * 2)) -le "$disk" ] || pause=0.2
    if { [ "$usage" -gt "$memory" ] || [ "$usage" -gt "$disk" ]; } && look; then
        # Files that went between two readings would count as memory: the second look tells.
        [ -z "$twice" ] || break
        twice=yes pause=0.1 fault=
    else
        twice=
    fi
    sleep "$pause" || sleep 1
done
trap 'kill -s KILL -- -1' EXIT
printf '\n%s\n' "${fault:-timeout}" >>"$2"  # the command may have written half a line
[ -z "$fault" ] || exit
kill -s TERM -- -1
sleep 5
