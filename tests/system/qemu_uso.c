// SPDX-License-Identifier: Apache-2.0
// Preloaded into QEMU: makes it offer USO to a guest on a vhost-user netdev.
//
// QEMU knows USO since 8.2 and passes its bits between a vhost-user back end and the guest, but first asks the netdev
// whether it has_uso, and the vhost-user netdev doesn't answer that question (seen in 10.0). Here the question is
// answered with yes; all else, the negotiation with the back end included, is QEMU's own. In any other program, such as
// a shell that starts QEMU, this does nothing.
#include <dlfcn.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

__attribute__((constructor)) static void
answer_yes(void)
{
    static const uint8_t return_true[] = { 0xb8, 1, 0, 0, 0, 0xc3 }; // x86-64: mov $1, %eax; ret
    void *function = dlsym(RTLD_DEFAULT, "qemu_has_uso");
    if (function == NULL)
        return;
    uintptr_t page_size = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)function & ~(page_size - 1);
    size_t length = (uintptr_t)function + sizeof(return_true) - start;
    if (mprotect((void *)start, length, PROT_READ | PROT_WRITE | PROT_EXEC) != 0)
        _exit(1);
    memcpy(function, return_true, sizeof(return_true));
    if (mprotect((void *)start, length, PROT_READ | PROT_EXEC) != 0)
        _exit(1);
}
