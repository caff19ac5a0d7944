# Hands over to systemd as PID 1, with next to nothing of the host's own services. Sourced by start.sh.
units=/etc/systemd/system

# What the host's administrator enabled is not for the guest.
rm -rf $units/*.wants $units/*.requires
echo box >/etc/hostname
ln -sf /dev/null /etc/tmpfiles.d/tmp.conf # it would empty /tmp, and with it the shares there

# Of what the targets of a boot pull in by themselves, only this stays.
for wanted in /lib/systemd/system/*.target.wants/*; do
    name=${wanted##*/}
    case $name in
        systemd-journald* | systemd-udevd* | systemd-udev-trigger* | systemd-tmpfiles-setup* | systemd-ask-password*) ;;
        dbus.socket | *.target | *.path | lvm2-* | blk-availability*) ;;
        *) ln -sf /dev/null "$units/$name" ;;
    esac
done
for name in getty.target systemd-logind.service systemd-remount-fs.service systemd-journal-flush.service modprobe@.service; do
    ln -sf /dev/null "$units/$name"
done

mkdir -p /etc/systemd/journald.conf.d $units/box.target.wants
printf '[Journal]\nStorage=volatile\n' >/etc/systemd/journald.conf.d/box.conf
cat >$units/box.target <<UNIT
[Unit]
Description=Everything that the box needs
Requires=multi-user.target
After=multi-user.target
AllowIsolate=yes
UNIT
cat >$units/box-serve.service <<UNIT
[Unit]
Description=Runs what the host asks for
After=multi-user.target
[Service]
Environment=HOME=/root LANG=C.UTF-8 SYSTEMD_PAGER=cat
ExecStart=/bin/bash /run/box/serve.sh
StandardOutput=tty
StandardError=tty
TTYPath=/dev/tty0
KillMode=process
UNIT
ln -sf ../box-serve.service $units/box.target.wants/
exec env -i PATH="$PATH" /sbin/init --unit=box.target --show-status=false --log-level=warning
