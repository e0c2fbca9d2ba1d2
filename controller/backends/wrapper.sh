# PID 1 of every sandbox: runs the command once, ends it at its timeout, and writes down what became of it.
#   /bin/sh -c "$this_text" sandbox STATE_FILE TIMEOUT_SECONDS COMMAND [FIRST_LINE MESSAGE_FILE]
# FIRST_LINE is written before all output: where a log begins with it, nothing of the log was dropped. Where there is a
# MESSAGE_FILE, the first start makes the state file, and the message file, which each start has anew, gets a copy.
# The state file outlives restarts of the container. Empty: nothing ran yet. Its lines, where each word's first counts:
#   started | started_at T | timeout | exit CODE | oom | ended_at T | again      (T: seconds since 1970)
# Until the command has ended, PID 1 sets no variable: it could be one of the command's own, and change it there.
# What must be written even where no process can be made any more is written by builtins.

exec 2>/dev/null  # what this shell itself has to say is not the command's output

[ -z "$5" ] || [ -e "$1" ] || : >"$1"

# No file: nobody allowed a start. Not empty: it started before, and what became of it then is what counts.
if [ ! -f "$1" ] || [ -s "$1" ]; then
    [ -s "$1" ] && echo again >>"$1"
    count=0
    [ -z "$5" ] || while [ $count -lt 20 ] && read -r line; do count=$((count + 1)); echo "$line"; done <"$1" >"$5"
    PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
    set -- $(head -c 4096 "$1" | sed -n 's/^exit \([0-9]\{1,3\}\)$/\1/p')
    exit "${1:-125}"
fi
echo started >>"$1" || exit 125  # no evidence, no run
[ -z "$5" ] || echo started >"$5"
PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin date +'started_at %s' >>"$1"
PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin sync "$1"  # the host may lose its power
[ -z "$4" ] || echo "$4"

# The timer. A sleep that the command killed is slept again, by the clock since boot, which nobody sets.
# However it ends, be it for want of a process, everything but PID 1 is killed. A command that sends a signal to all
# that it can see does not end it: it is born deaf to the usual ones, and the command is not.
trap '' HUP TERM
(
    trap 'kill -s KILL -- -1' EXIT
    PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
    read -r now rest </proc/uptime
    end=$((${now%.*} + $2))
    sleep "$2"
    while read -r now rest </proc/uptime && [ "${now%.*}" -lt "$end" ]; do
        sleep $((end - ${now%.*}))
    done
    echo timeout >>"$1"
    kill -s TERM -- -1
    sleep 5
) </dev/null >/dev/null &
trap - HUP TERM

# In the foreground: in the background SIGINT would be ignored. One pipe for both streams keeps their order. In a
# subshell, or the redirection would be this shell's own for that time, and its "Killed" would join the output.
(exec /bin/sh -c -- "$3" </dev/null 2>&1) && set -- "$1" 0 "$5" || set -- "$1" "$?" "$5"
echo "exit $2" >>"$1"

# The kernel's count of processes killed for want of memory (cgroup 2, or 1); an engine may miss its event.
for file in /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control; do
    [ ! -r "$file" ] || while read -r word count; do
        [ "$word" != oom_kill ] || [ "$count" = 0 ] || echo oom >>"$1"
    done <"$file"
done
PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin date +'ended_at %s' >>"$1"
[ -z "$3" ] || {
    count=0
    while [ $count -lt 20 ] && read -r line; do count=$((count + 1)); echo "$line"; done <"$1"
    echo "exit $2"  # where the command wrote more lines than that
} >"$3"
exit "$2"  # and the kernel kills what the command left behind
