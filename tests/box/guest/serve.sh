# Runs commands for the host: each line on the second console is the number of one.
#
# N.sh in the shared folder is run; what it says goes to the console and to N.out, its exit code to N.code, which
# appears when all is done. When the host hangs up, the guest goes off.
. /run/box/settings
exec 3</dev/tty1
stty -F /dev/tty1 -echo

serve() {
    {
        cd /
        bash "$BOX_SHARE/$1.sh" 3<&- </dev/null
        echo $? >"/run/box/$1.code"
    } 2>&1 | tee "$BOX_SHARE/$1.out"
    cp "/run/box/$1.code" "$BOX_SHARE/$1.new"
    mv "$BOX_SHARE/$1.new" "$BOX_SHARE/$1.code"
}

: >"$BOX_SHARE/ready"
while read -r number <&3; do
    serve "$number" &
done
echo o >/proc/sysrq-trigger
sleep 60
