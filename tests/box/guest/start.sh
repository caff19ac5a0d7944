# Second stage, in the new root: what the guest needs from a running system, with or without systemd. Then serve.sh.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/root
. /run/box/settings
umount -l /run/old
hostname box
ip link set lo up 2>/dev/null || busybox ifconfig lo 127.0.0.1 up
stty -F /dev/tty0 -onlcr

# The host's LVM keeps its archives there, and a list of devices that the guest doesn't have.
mkdir -p /etc/lvm/archive /etc/lvm/backup
mount -t tmpfs -o mode=700 archive /etc/lvm/archive
mount -t tmpfs -o mode=700 backup /etc/lvm/backup
rm -rf /etc/lvm/devices
# Every change of a volume touches all that it reserves, and a page costs so much in a guest that this is a third of it.
echo 'activation/reserved_memory = 0' >>/etc/lvm/lvm.conf
: >/etc/fstab

if [ "$BOX_INIT" = systemd ]; then
    . /run/box/systemd.sh
fi
/lib/systemd/systemd-udevd --daemon
udevadm trigger --action=add --type=subsystems
udevadm trigger --action=add --type=devices --subsystem-match=block --subsystem-match=misc --subsystem-match=mem
udevadm settle
exec bash /run/box/serve.sh
