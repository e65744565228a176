/* SPDX-License-Identifier: Apache-2.0 */
/* guest_memory.c - see guest_memory.h for how it works and who may call it. */
#include "guest_memory.h"

#include <errno.h>
#include <linux/magic.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

/*
 * The registry that the signal handler searches: chunks of slots that are never freed. A slot is free while `region` is
 * NULL. The handler may run on a worker at any moment, so it reads slots only, under a sequence number that a writer
 * makes odd, and touches no region but the one it looks for: the worker is using that one, so it can't be unmapped.
 */
enum { SLOTS_PER_CHUNK = 1024 };

struct slot {
    _Atomic uintptr_t base, len;
    _Atomic(struct pvs_region *) region;
};

struct chunk {
    struct slot slot[SLOTS_PER_CHUNK];
    _Atomic(struct chunk *) next;
};

static struct chunk first_chunk;
static _Atomic uint32_t registry_seq;
static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static struct sigaction previous;
static bool installed;

static struct pvs_region *
registry_scan(uintptr_t address)
{
    for (struct chunk *c = &first_chunk; c != NULL; c = atomic_load_explicit(&c->next, memory_order_acquire)) {
        for (int i = 0; i < SLOTS_PER_CHUNK; i++) {
            struct slot *s = &c->slot[i];
            if (address - atomic_load_explicit(&s->base, memory_order_relaxed) <
                atomic_load_explicit(&s->len, memory_order_relaxed))
                return atomic_load_explicit(&s->region, memory_order_relaxed);
        }
    }
    return NULL;
}

/* The registered region that `address` lies in, or NULL. Async-signal-safe: a writer never faults while it writes. */
static struct pvs_region *
registry_find(const void *address)
{
    for (;;) {
        uint32_t seq = atomic_load_explicit(&registry_seq, memory_order_acquire);
        struct pvs_region *region = registry_scan((uintptr_t)address);
        /* acquire fence: the slots were read before the number is looked at again */
        atomic_thread_fence(memory_order_acquire);
        if (!(seq & 1) && atomic_load_explicit(&registry_seq, memory_order_relaxed) == seq)
            return region;
    }
}

/* Change one slot; the lock is held. */
static void
slot_set(struct slot *slot, uintptr_t base, uintptr_t len, struct pvs_region *region)
{
    uint32_t seq = atomic_load_explicit(&registry_seq, memory_order_relaxed);
    atomic_store_explicit(&registry_seq, seq + 1, memory_order_relaxed);
    /* release fence: the odd number is visible before the change; the release store below ends it */
    atomic_thread_fence(memory_order_release);
    atomic_store_explicit(&slot->base, base, memory_order_relaxed);
    atomic_store_explicit(&slot->len, len, memory_order_relaxed);
    atomic_store_explicit(&slot->region, region, memory_order_relaxed);
    atomic_store_explicit(&registry_seq, seq + 2, memory_order_release);
}

/* The slot that holds `region` (NULL: a free one), or NULL; the lock is held. */
static struct slot *
slot_of(const struct pvs_region *region)
{
    for (struct chunk *c = &first_chunk; c != NULL; c = atomic_load_explicit(&c->next, memory_order_relaxed))
        for (int i = 0; i < SLOTS_PER_CHUNK; i++)
            if (atomic_load_explicit(&c->slot[i].region, memory_order_relaxed) == region)
                return &c->slot[i];
    return NULL;
}

static int
registry_add(struct pvs_region *region)
{
    pthread_mutex_lock(&registry_lock);
    struct slot *slot = slot_of(NULL);
    if (slot == NULL) {
        struct chunk *fresh = calloc(1, sizeof *fresh), *last = &first_chunk, *next;
        while ((next = atomic_load_explicit(&last->next, memory_order_relaxed)) != NULL)
            last = next;
        if (fresh != NULL) {
            atomic_store_explicit(&last->next, fresh, memory_order_release);
            slot = &fresh->slot[0];
        }
    }
    if (slot != NULL)
        slot_set(slot, (uintptr_t)region->map, region->map_len, region);
    pthread_mutex_unlock(&registry_lock);
    return slot != NULL ? 0 : -ENOMEM;
}

static void
registry_remove(const struct pvs_region *region)
{
    pthread_mutex_lock(&registry_lock);
    slot_set(slot_of(region), 0, 0, NULL);
    pthread_mutex_unlock(&registry_lock);
}

static void
on_sigbus(int signo, siginfo_t *info, void *context)
{
    int saved_errno = errno;
    /* si_code <= 0: sent by a process, there is no address */
    struct pvs_region *region = info->si_code > 0 ? registry_find(info->si_addr) : NULL;
    /* the system call itself: mmap(), or what a sanitizer puts in its place, need not be safe in a signal's handler */
    if (region != NULL && syscall(SYS_mmap, region->map, region->map_len, PROT_READ | PROT_WRITE,
                                  MAP_FIXED | MAP_ANONYMOUS | MAP_PRIVATE | MAP_NORESERVE, -1, 0) != -1) {
        /* relaxed: the same thread reads the latch after its burst; other readers only need it soon */
        atomic_store_explicit(&region->lost, true, memory_order_relaxed);
        atomic_store_explicit(region->port_lost, true, memory_order_relaxed);
        errno = saved_errno;
        return;
    }
    errno = saved_errno;
    if (previous.sa_flags & SA_SIGINFO) {
        previous.sa_sigaction(signo, info, context);
    } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
        previous.sa_handler(signo);
    } else if (previous.sa_handler == SIG_DFL || info->si_code > 0) {
        /* nobody else wants it: the default action, which ends the process, also for a fault that was to be ignored */
        signal(SIGBUS, SIG_DFL);
        raise(SIGBUS);
    }
}

int
pvs_sigbus_install(void)
{
    int rc = 0;
    pthread_mutex_lock(&registry_lock);
    if (!installed) {
        struct sigaction action = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK };
        sigemptyset(&action.sa_mask);
        if (sigaction(SIGBUS, &action, &previous) != 0)
            rc = -errno;
        else
            installed = true;
    }
    pthread_mutex_unlock(&registry_lock);
    return rc;
}

/* Check a region against its file and say at which granularity it can be mapped (a huge page for hugetlbfs). */
static int
region_check(int fd, uint64_t size, uint64_t offset, uint64_t *align)
{
    struct stat st;
    struct statfs fs;
    uint64_t end;

    if (fstat(fd, &st) != 0 || fstatfs(fd, &fs) != 0)
        return -errno;
    if (!S_ISREG(st.st_mode) || __builtin_add_overflow(offset, size, &end))
        return -EINVAL;
    if ((uint64_t)st.st_size < end)
        return -EFBIG;
    *align = (uint64_t)sysconf(_SC_PAGESIZE);
    if (fs.f_type == HUGETLBFS_MAGIC && (uint64_t)fs.f_bsize > *align)
        *align = (uint64_t)fs.f_bsize;
    return 0;
}

int
pvs_region_create(_Atomic bool *port_lost, int fd, uint64_t gpa, uint64_t size, uint64_t uva, uint64_t offset,
                  struct pvs_region **out)
{
    uint64_t end, align = 0;

    if (size == 0 || __builtin_add_overflow(gpa, size, &end) || __builtin_add_overflow(uva, size, &end))
        return -EINVAL;
    int rc = region_check(fd, size, offset, &align);
    if (rc != 0)
        return rc;

    struct pvs_region *region = calloc(1, sizeof *region);
    if (region == NULL)
        return -ENOMEM;
    uint64_t lead = offset & (align - 1);
    region->gpa = gpa;
    region->size = size;
    region->uva = uva;
    region->map_len = (lead + size + align - 1) & ~(align - 1);
    region->refs = 1;
    region->port_lost = port_lost;
    region->map =
        mmap(NULL, region->map_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, (off_t)(offset - lead));
    if (region->map == MAP_FAILED) {
        rc = -errno;
        free(region);
        return rc;
    }
    region->host = (uint8_t *)region->map + lead;
    madvise(region->map, region->map_len, MADV_DONTDUMP); /* a guest's RAM has no place in our core dump */
    rc = registry_add(region);
    if (rc != 0) {
        munmap(region->map, region->map_len);
        free(region);
        return rc;
    }
    *out = region;
    return 0;
}

void
pvs_region_unref(struct pvs_region *region)
{
    if (--region->refs != 0)
        return;
    registry_remove(region);
    munmap(region->map, region->map_len);
    free(region);
}

static int
by_gpa(const void *a, const void *b)
{
    const struct pvs_region *x = *(struct pvs_region *const *)a, *y = *(struct pvs_region *const *)b;
    return x->gpa < y->gpa ? -1 : x->gpa > y->gpa;
}

static bool
any_overlap(struct pvs_region *const *region, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        if (i > 0 && region[i]->gpa - region[i - 1]->gpa < region[i - 1]->size)
            return true;
        for (uint32_t k = 0; k < i; k++)
            if (region[i]->uva - region[k]->uva < region[k]->size || region[k]->uva - region[i]->uva < region[i]->size)
                return true;
    }
    return false;
}

int
pvs_memory_create(struct pvs_region *const *regions, uint32_t n, struct pvs_memory **out)
{
    if (n > PVS_MAX_REGIONS)
        return -EINVAL;
    struct pvs_memory *memory = calloc(1, sizeof *memory + n * sizeof memory->spans[0]);
    struct pvs_region **sorted = calloc(n + 1, sizeof(struct pvs_region *));
    if (memory == NULL || sorted == NULL) {
        free(memory);
        free(sorted);
        return -ENOMEM;
    }
    if (n != 0) {
        memcpy(sorted, regions, n * sizeof(struct pvs_region *));
        qsort(sorted, n, sizeof(struct pvs_region *), by_gpa);
    }
    if (any_overlap(sorted, n)) {
        free(memory);
        free(sorted);
        return -EINVAL;
    }
    memory->n = n;
    memory->regions = sorted;
    for (uint32_t i = 0; i < n; i++) {
        sorted[i]->refs++;
        memory->spans[i] = (struct pvs_span){ sorted[i]->gpa, sorted[i]->size, sorted[i]->host };
    }
    *out = memory;
    return 0;
}

void
pvs_memory_destroy(struct pvs_memory *memory)
{
    if (memory == NULL)
        return;
    for (uint32_t i = 0; i < memory->n; i++)
        pvs_region_unref(memory->regions[i]);
    free(memory->regions);
    free(memory);
}

void *
pvs_memory_from_uva(const struct pvs_memory *memory, uint64_t uva, uint64_t len)
{
    for (uint32_t i = 0; i < memory->n; i++) {
        const struct pvs_region *r = memory->regions[i];
        if (uva - r->uva < r->size && len <= r->size - (uva - r->uva))
            return atomic_load_explicit(&r->lost, memory_order_relaxed) ? NULL : r->host + (uva - r->uva);
    }
    return NULL;
}
