/*
 * Lets user-mode Linux 6.1 run on a CPU whose registers it has not heard of (AMX, APX). Preloaded by box.py.
 *
 * Its buffer for a process's extended registers has a fixed size (HOST_FP_SIZE in arch/x86/um/user-offsets.c).
 * Reading less than everything is allowed, writing is not: PTRACE_SETREGSET says EFAULT, and the guest's init dies
 * before its first instruction. So here a write that is too short is laid over what the process has now.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* XSTATE_BV follows the 512 bytes of FXSAVE. Up to PKRU, bit 9, the components lie within the guest's buffer; the
   others are left out, which puts them in their initial state. */
#define COMPONENTS_OFFSET 512
#define COMPONENTS_KNOWN 0x2ffUL

/* Static: the stacks of the guest's kernel are small. Only one of its threads uses ptrace. */
static unsigned char whole[64 << 10];
static size_t whole_size;

static long set_extended_registers(long pid, void *type, const struct iovec *part)
{
    struct iovec all = {whole, sizeof whole};
    uint64_t components;

    if (whole_size == 0) {
        if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, type, &all) < 0)
            return -1;
        whole_size = all.iov_len;
    }
    if (part->iov_len >= whole_size)
        return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, type, part);
    memcpy(whole, part->iov_base, part->iov_len);
    memcpy(&components, whole + COMPONENTS_OFFSET, sizeof components);
    components &= COMPONENTS_KNOWN;
    memcpy(whole + COMPONENTS_OFFSET, &components, sizeof components);
    all.iov_len = whole_size;
    return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, type, &all);
}

long ptrace(enum __ptrace_request request, ...)
{
    va_list arguments;
    long pid, result, word;
    void *address, *data;

    va_start(arguments, request);
    pid = va_arg(arguments, pid_t);
    address = va_arg(arguments, void *);
    data = va_arg(arguments, void *);
    va_end(arguments);

    if (request == PTRACE_SETREGSET && address == (void *)NT_X86_XSTATE)
        return set_extended_registers(pid, address, data);
    if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER) {
        /* The system call stores the word; the function of the C library returns it (ptrace(2)). */
        result = syscall(SYS_ptrace, request, pid, address, &word);
        if (result < 0)
            return result;
        errno = 0;
        return word;
    }
    return syscall(SYS_ptrace, request, pid, address, data);
}
