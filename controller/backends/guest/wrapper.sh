# PID 1 of every sandbox: runs the command once, starts its keeper beside it, and writes down what became of it.
#   /bin/sh -c "$this_text" sandbox STATE_FILE TIMEOUT_SECONDS DISK_MIB MEMORY_MIB KEEPER COMMAND [FIRST_LINE MESSAGE_FILE]
# MEMORY_MIB: for the keeper, which explains it. KEEPER: the text of keeper.sh.
# FIRST_LINE is written before all output: where a log begins with it, nothing of the log was dropped. Where there is a
# MESSAGE_FILE, the first start makes the state file, and the message file, which each start has anew, gets a copy.
# The state file outlives restarts of the container. Empty: nothing ran yet. Its lines, where each word's first counts:
#   started | started_at T | timeout | oom | disk MIB | exit CODE | ended_at T | again      (T: seconds since 1970)
# Until the command has ended, PID 1 sets no variable: it could be one of the command's own, and change it there.
# What must be written even where no process can be made any more is written by builtins.

exec 2>/dev/null  # what this shell itself has to say is not the command's output

# The command's group is this shell's too, so it is deaf to all that a command may send there: the kernel keeps KILL, STOP
# and what has no handler from a PID 1, but shells have handlers. By number, which all shells know.
trap '' 1 2 3 4 5 6 7 8 10 11 12 13 14 15 16 20 21 22 24 25 26 27 29 30 31

# No file is larger, in blocks of 512 bytes: state and message file lie where nobody counts. The command has less, so that
# what follows it can be written.
ulimit -c 0
ulimit -f "$((($3 + 2) * 2048))"

[ -z "$8" ] || [ -e "$1" ] || : >"$1"

# No file: nobody allowed a start. Not empty: it started before, and what became of it then is what counts.
if [ ! -f "$1" ] || [ -s "$1" ]; then
    [ -s "$1" ] && echo again >>"$1"
    PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
    [ -z "$8" ] || head -c 2048 "$1" >"$8"
    set -- $(head -c 4096 "$1" | sed -n 's/^exit \([0-9]\{1,3\}\)$/\1/p')
    exit "${1:-125}"
fi
echo started >>"$1" || exit 125  # no evidence, no run
[ -z "$8" ] || echo started >"$8"
PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin date +'started_at %s' >>"$1"
PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin sync "$1"  # the host may lose its power
[ -z "$7" ] || echo "$7"

# The keeper, in a session of its own where there is a setsid: what the command sends to its group does not reach it.
# Without one it is deaf like this shell, and KILL and STOP reach it.
set -- "$1" "$2" "$3" "$4" "$5" "$6" "$7" "$8" "$(PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin; command -v setsid)"
${9:+"$9"} /bin/sh -c "$5" keeper "$5" "$1" "$2" "$4" "$3" </dev/null >/dev/null &

# In the foreground: in the background SIGINT would be ignored. One pipe for both streams keeps their order. In a
# subshell, or the redirection would be this shell's own for that time, and its "Killed" would join the output.
(
    set -- "$3" "$6" "${9:+0}" "$1"
    # Until the keeper is there. Of two spellings dash knows only the first, and BusyBox only the second.
    until [ "${3:-99999}" -ge 99999 ] || kill -s 0 -- "-$!" || kill -s 0 "-$!"; do set -- "$1" "$2" $(($3 + 1)) "$4"; done
    trap - 1 2 3 4 5 6 7 8 10 11 12 13 14 15 16 20 21 22 24 25 26 27 29 30 31
    # Where the timeout came before this, TERM found nobody who heeds it. Read by builtins: nothing slow lies between the
    # keeper's clock and the command.
    (while read -r word; do [ "$word" != timeout ] || exit 0; done <"$4"; exit 1) && exit 143
    ulimit -f "$((($1 + 1) * 2048))"
    exec /bin/sh -c -- "$2" </dev/null 2>&1
) && set -- "$1" 0 "$8" || set -- "$1" "$?" "$8"
echo "exit $2" >>"$1"
kill -s KILL -- -1  # what the command left behind: what follows needs processes, and must be the last that is written
wait

# The kernel's count of processes killed for want of memory (cgroup 2, or 1); an engine may miss its event.
for file in /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control; do
    [ ! -r "$file" ] || while read -r word count; do
        [ "$word" != oom_kill ] || [ "$count" = 0 ] || echo oom >>"$1"
    done <"$file"
done
PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin
date +'ended_at %s' >>"$1"
# Where the command wrote there too, what counts goes to the beginning, over what is there: the file is never empty.
if [ "$(wc -c <"$1")" -gt 2048 ]; then
    words=$({ head -c 2048 "$1"; tail -c 512 "$1"; } | grep -aE '^(started_at [0-9]+|timeout|oom|disk [0-9]+)$' | head -n 9)
    { echo started; echo "$words"; echo "exit $2"; date +'ended_at %s'; } 1<>"$1"
fi
[ -z "$3" ] || head -c 2048 "$1" >"$3" || echo "exit $2" >"$3"
exit "$2"
