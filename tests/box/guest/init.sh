#!/bin/busybox sh
# First program in the guest: builds a root that may be written to, and moves into it.
#
# "/" is the host's own root, as hostfs, read-only. What is written to it goes to memory, by an overlay. BOX_SHARE
# comes from the kernel's command line: the one folder that the host shares to begin with; `settings` in it has the
# rest. Then start.sh.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin

# First of all: on a hostfs root /proc is the host's, and busybox runs its applets from /proc/self/exe.
/bin/busybox mount -t proc proc /proc

. "$BOX_SHARE/settings"
modules=/usr/lib/uml/modules/$(uname -r)
root=/mnt/root

insmod "$modules/kernel/fs/overlayfs/overlay.ko"
mount -t tmpfs -o mode=755 box /mnt
mkdir /mnt/upper /mnt/work $root
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work box $root || echo "box: no overlay"

mount -t proc -o nosuid,nodev,noexec proc $root/proc
mount -t sysfs -o nosuid,nodev,noexec sys $root/sys
mount -t devtmpfs -o nosuid,mode=755 dev $root/dev
mkdir -p $root/dev/shm $root/dev/pts
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts $root/dev/pts
mount -t tmpfs -o nosuid,nodev,mode=1777 shm $root/dev/shm
mount -t tmpfs -o nosuid,nodev,mode=755 run $root/run
mount -t tmpfs -o mode=1777 tmp $root/tmp
ln -sfn /proc/self/fd $root/dev/fd
for number in 0 1 2; do
    ln -sfn "fd/$number" "$root/dev/$(echo stdin stdout stderr | cut -d' ' -f$((number + 1)))"
done
mkdir -p $root/lib/modules $root/run/box $root/run/lock $root/run/old
ln -sfn "$modules" "$root/lib/modules/$(uname -r)"

# share OPTIONS FOLDER: show a folder of the host at its own path, also where a file system above hides it.
share() {
    mkdir -p "$root$2"
    mount -t hostfs -o "$1$2" none "$root$2" || echo "box: no share $2"
}
share "" "$BOX_SHARE"
for folder in $BOX_READ_ONLY; do share ro, "$folder"; done
for folder in $BOX_WRITABLE; do share "" "$folder"; done

cp "$BOX_SHARE/settings" "$BOX_GUEST"/*.sh $root/run/box/
cd $root && pivot_root . run/old
exec chroot . /bin/busybox sh /run/box/start.sh </dev/null
