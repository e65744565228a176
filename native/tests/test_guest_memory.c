/* SPDX-License-Identifier: Apache-2.0 */
/* test_guest_memory.c - regions, the address map, and what happens when a file shrinks (guest_memory.h). */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "guest_memory.h"
#include "test.h"

enum { PAGE = 4096 };

static _Atomic bool port_lost;

static int
file_of(uint64_t size)
{
    int fd = memfd_create("test", MFD_CLOEXEC);
    CHECK(fd >= 0);
    CHECK_EQ(ftruncate(fd, (off_t)size), 0);
    return fd;
}

/* A region over a file of its own. */
static struct pvs_region *
region_at(uint64_t gpa, uint64_t size, uint64_t uva)
{
    struct pvs_region *region;
    int fd = file_of(size);
    CHECK_EQ(pvs_region_create(&port_lost, fd, gpa, size, uva, 0, &region), 0);
    close(fd);
    return region;
}

/* A map over regions, which it alone keeps alive. */
static struct pvs_memory *
memory_of(struct pvs_region **region, uint32_t n)
{
    struct pvs_memory *memory;
    CHECK_EQ(pvs_memory_create(region, n, &memory), 0);
    for (uint32_t i = 0; i < n; i++)
        pvs_region_unref(region[i]);
    return memory;
}

static int
refusal(int fd, uint64_t gpa, uint64_t size, uint64_t uva, uint64_t offset)
{
    struct pvs_region *region = NULL;
    int rc = pvs_region_create(&port_lost, fd, gpa, size, uva, offset, &region);
    if (rc == 0)
        pvs_region_unref(region);
    return rc;
}

TEST(region_must_lie_inside_its_file)
{
    int fd = file_of(4 * PAGE);
    CHECK_EQ(refusal(fd, 0, 4 * PAGE, 0, 0), 0);
    CHECK_EQ(refusal(fd, 0, 4 * PAGE + 1, 0, 0), -EFBIG);
    CHECK_EQ(refusal(fd, 0, 4 * PAGE, 0, 1), -EFBIG);
    CHECK_EQ(refusal(fd, 0, PAGE, 0, 3 * PAGE), 0);
    CHECK_EQ(refusal(fd, 0, PAGE, 0, 4 * PAGE), -EFBIG);
    close(fd);
}

TEST(region_arithmetic_must_not_wrap)
{
    int fd = file_of(4 * PAGE);
    CHECK_EQ(refusal(fd, 0, 0, 0, 0), -EINVAL);
    CHECK_EQ(refusal(fd, UINT64_MAX - PAGE + 1, 2 * PAGE, 0, 0), -EINVAL);
    CHECK_EQ(refusal(fd, 0, 2 * PAGE, UINT64_MAX - PAGE + 1, 0), -EINVAL);
    CHECK_EQ(refusal(fd, 0, PAGE, 0, UINT64_MAX - 100), -EINVAL);
    CHECK(refusal(fd, 0, UINT64_MAX - PAGE, 0, 0) < 0);
    close(fd);
}

TEST(region_must_be_backed_by_a_file)
{
    int ends[2], event = eventfd(0, 0);
    CHECK_EQ(pipe(ends), 0);
    CHECK_EQ(refusal(ends[0], 0, PAGE, 0, 0), -EINVAL);
    CHECK_EQ(refusal(event, 0, PAGE, 0, 0), -EINVAL);
    CHECK_EQ(refusal(-1, 0, PAGE, 0, 0), -EBADF);
    close(ends[0]);
    close(ends[1]);
    close(event);
}

TEST(region_of_a_read_only_file_is_refused)
{
    char path[64];
    int fd = file_of(PAGE);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int readonly = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(readonly >= 0);
    CHECK(refusal(readonly, 0, PAGE, 0, 0) < 0);
    close(readonly);
    close(fd);
}

TEST(region_may_begin_anywhere_in_its_file)
{
    struct pvs_region *region;
    int fd = file_of(4 * PAGE);
    CHECK_EQ(pwrite(fd, "x", 1, PAGE + 123), 1);
    CHECK_EQ(pvs_region_create(&port_lost, fd, 0x1000, PAGE, 0x9000, PAGE + 123, &region), 0);
    CHECK_EQ(region->host[0], 'x');
    region->host[PAGE - 1] = 'y';
    char c = 0;
    CHECK_EQ(pread(fd, &c, 1, 2 * PAGE + 122), 1);
    CHECK_EQ(c, 'y');
    pvs_region_unref(region);
    close(fd);
}

TEST(memory_refuses_overlapping_guest_addresses)
{
    struct pvs_memory *memory = NULL;
    struct pvs_region *a = region_at(0x10000, 2 * PAGE, 0x700000), *b = region_at(0x10000 + PAGE, PAGE, 0x800000);
    struct pvs_region *both[] = { a, b }, *reversed[] = { b, a }, *twice[] = { a, a };
    CHECK_EQ(pvs_memory_create(both, 2, &memory), -EINVAL);
    CHECK_EQ(pvs_memory_create(reversed, 2, &memory), -EINVAL);
    CHECK_EQ(pvs_memory_create(twice, 2, &memory), -EINVAL);
    pvs_region_unref(a);
    pvs_region_unref(b);
}

TEST(memory_refuses_overlapping_user_addresses)
{
    struct pvs_memory *memory = NULL;
    struct pvs_region *a = region_at(0x10000, 2 * PAGE, 0x700000), *b = region_at(0x90000, PAGE, 0x700000 + PAGE);
    struct pvs_region *both[] = { a, b }, *reversed[] = { b, a };
    CHECK_EQ(pvs_memory_create(both, 2, &memory), -EINVAL);
    CHECK_EQ(pvs_memory_create(reversed, 2, &memory), -EINVAL);
    pvs_region_unref(a);
    pvs_region_unref(b);
}

TEST(memory_takes_509_regions_and_no_more)
{
    static struct pvs_region *region[PVS_MAX_REGIONS + 1];
    struct pvs_memory *memory;
    for (uint32_t i = 0; i <= PVS_MAX_REGIONS; i++)
        region[i] = region_at((uint64_t)i * 2 * PAGE, PAGE, 0x700000 + (uint64_t)i * PAGE);
    CHECK_EQ(pvs_memory_create(region, PVS_MAX_REGIONS + 1, &memory), -EINVAL);
    pvs_region_unref(region[PVS_MAX_REGIONS]);
    memory = memory_of(region, PVS_MAX_REGIONS);
    for (uint32_t i = 0; i < PVS_MAX_REGIONS; i++) {
        struct pvs_seg seg;
        uint32_t hint = (i * 7) % PVS_MAX_REGIONS;
        CHECK_EQ(pvs_memory_translate(memory, (uint64_t)i * 2 * PAGE + 5, PAGE - 5, &hint, &seg, 1), 1);
        CHECK(seg.base == region[i]->host + 5);
        CHECK_EQ(pvs_memory_translate(memory, (uint64_t)i * 2 * PAGE + PAGE, 1, &hint, &seg, 1), 0);
    }
    pvs_memory_destroy(memory);
}

TEST(memory_keeps_its_regions_alive)
{
    struct pvs_region *region = region_at(0, PAGE, 0);
    struct pvs_memory *one = memory_of(&region, 1), *two;
    CHECK_EQ(pvs_memory_create(&one->regions[0], 1, &two), 0);
    pvs_memory_destroy(one);
    two->spans[0].host[0] = 1;
    pvs_memory_destroy(two);
}

/* Two regions that touch at 0x12000, and one behind a hole at 0x20000, given in the wrong order. */
static struct pvs_memory *
three_regions(void)
{
    struct pvs_region *region[] = { region_at(0x20000, PAGE, 0x500000), region_at(0x12000, PAGE, 0x700000),
                                    region_at(0x10000, 2 * PAGE, 0x600000) };
    return memory_of(region, 3);
}

TEST(translate_crosses_adjacent_regions_in_order)
{
    struct pvs_memory *memory = three_regions();
    struct pvs_seg seg[4];
    uint32_t hint = 2;
    CHECK_EQ(pvs_memory_translate(memory, 0x11ff0, 0x20, &hint, seg, 4), 2);
    CHECK(seg[0].base == memory->spans[0].host + 0x1ff0);
    CHECK_EQ(seg[0].len, 0x10);
    CHECK(seg[1].base == memory->spans[1].host);
    CHECK_EQ(seg[1].len, 0x10);
    CHECK_EQ(seg[0].region, 0);
    CHECK_EQ(seg[1].region, 1);
    CHECK_EQ(pvs_memory_translate(memory, 0x11ff0, 0x20, &hint, seg, 1), 2); /* more than there was room for */
    CHECK_EQ(pvs_memory_translate(memory, 0x11ff0, 0x10, &hint, seg, 1), 1);
    pvs_memory_destroy(memory);
}

TEST(translate_refuses_holes_and_ends)
{
    struct pvs_memory *memory = three_regions();
    struct pvs_seg seg[4];
    uint32_t hint = 0;
    CHECK_EQ(pvs_memory_translate(memory, 0x12fff, 2, &hint, seg, 4), 0);
    CHECK_EQ(pvs_memory_translate(memory, 0x12fff, 1, &hint, seg, 4), 1);
    CHECK_EQ(pvs_memory_translate(memory, 0x13000, 1, &hint, seg, 4), 0);
    CHECK_EQ(pvs_memory_translate(memory, 0x0ffff, 2, &hint, seg, 4), 0);
    CHECK_EQ(pvs_memory_translate(memory, 0x10000, UINT32_MAX, &hint, seg, 4), 0);
    CHECK_EQ(pvs_memory_translate(memory, 0x20fff, 2, &hint, seg, 4), 0);
    CHECK_EQ(pvs_memory_translate(memory, 0, 1, &hint, seg, 4), 0);
    CHECK_EQ(pvs_memory_translate(memory, UINT64_MAX, 2, &hint, seg, 4), 0);
    CHECK_EQ(pvs_memory_translate(memory, 0x10000, 0, &hint, seg, 4), 0);
    pvs_memory_destroy(memory);
}

TEST(translate_does_not_wrap_round_the_address_space)
{
    struct pvs_region *region[] = { region_at(0, PAGE, 0x500000), region_at(UINT64_MAX - PAGE, PAGE, 0x600000) };
    struct pvs_memory *memory = memory_of(region, 2);
    struct pvs_seg seg[4];
    uint32_t hint = 0;
    CHECK_EQ(pvs_memory_translate(memory, UINT64_MAX - 16, 16, &hint, seg, 4), 1);
    CHECK_EQ(pvs_memory_translate(memory, UINT64_MAX - 16, 64, &hint, seg, 4), 0);
    pvs_memory_destroy(memory);
}

TEST(translate_without_memory_finds_nothing)
{
    struct pvs_memory *memory = memory_of(NULL, 0);
    struct pvs_seg seg;
    uint32_t hint = 0;
    CHECK_EQ(pvs_memory_translate(memory, 0, 1, &hint, &seg, 1), 0);
    CHECK(pvs_memory_from_uva(memory, 0, 1) == NULL);
    pvs_memory_destroy(memory);
}

TEST(cve_2018_1059_a_user_range_is_wholly_inside_one_region)
{
    struct pvs_memory *memory = three_regions();
    CHECK(pvs_memory_from_uva(memory, 0x600000, 2 * PAGE) == memory->spans[0].host);
    CHECK(pvs_memory_from_uva(memory, 0x600001, 2 * PAGE - 1) == memory->spans[0].host + 1);
    CHECK(pvs_memory_from_uva(memory, 0x600000, 2 * PAGE + 1) == NULL);
    CHECK(pvs_memory_from_uva(memory, 0x600000 + 2 * PAGE, 1) == NULL);
    CHECK(pvs_memory_from_uva(memory, 0x600000, UINT64_MAX) == NULL);
    CHECK(pvs_memory_from_uva(memory, 0x5fffff, 2) == NULL);
    CHECK(pvs_memory_from_uva(memory, UINT64_MAX, 2) == NULL);
    pvs_memory_destroy(memory);
}

/* ---- SIGBUS ---- */

TEST(truncated_memory_reads_zeros_and_tells_the_port)
{
    struct pvs_region *region, *other = region_at(0x90000, PAGE, 0x900000);
    int fd = file_of(4 * PAGE);
    CHECK_EQ(pvs_sigbus_install(), 0);
    CHECK_EQ(pvs_region_create(&port_lost, fd, 0, 4 * PAGE, 0x1000, 0, &region), 0);
    memset(region->host, 7, 4 * PAGE);
    CHECK_EQ(ftruncate(fd, PAGE), 0);
    volatile uint8_t *host = region->host;
    CHECK_EQ(host[0], 7);
    CHECK(!region->lost);
    errno = ENOTTY;
    CHECK_EQ(host[2 * PAGE], 0);
    CHECK_EQ(errno, ENOTTY);
    CHECK(region->lost);
    CHECK(port_lost);
    CHECK(!other->lost);
    host[3 * PAGE] = 1; /* and it can be written */
    struct pvs_memory *memory = memory_of(&region, 1);
    CHECK(pvs_memory_from_uva(memory, 0x1000, 1) == NULL);
    pvs_memory_destroy(memory);
    pvs_region_unref(other);
    close(fd);
}

TEST(truncated_memory_is_found_among_many_regions)
{
    enum { MANY = 1100 };
    static struct pvs_region *region[MANY];
    int fd = file_of(PAGE);
    CHECK_EQ(pvs_sigbus_install(), 0);
    for (int i = 0; i < MANY; i++)
        CHECK_EQ(pvs_region_create(&port_lost, fd, 0, PAGE, 0, 0, &region[i]), 0);
    CHECK_EQ(ftruncate(fd, 0), 0);
    CHECK_EQ(*(volatile uint8_t *)region[MANY - 1]->host, 0);
    CHECK(region[MANY - 1]->lost);
    CHECK(!region[0]->lost);
    for (int i = 0; i < MANY; i++)
        pvs_region_unref(region[i]);
    close(fd);
}

static sigjmp_buf back;
static volatile sig_atomic_t foreign;

static void
on_foreign(int signo)
{
    foreign = signo;
    siglongjmp(back, 1);
}

static volatile uint8_t *
foreign_hole(void)
{
    int fd = file_of(PAGE);
    volatile uint8_t *p = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(p != MAP_FAILED);
    CHECK_EQ(ftruncate(fd, 0), 0);
    close(fd);
    return p;
}

TEST(a_foreign_sigbus_goes_to_the_handler_before_ours)
{
    struct sigaction mine = { .sa_handler = on_foreign };
    CHECK_EQ(sigaction(SIGBUS, &mine, NULL), 0);
    CHECK_EQ(pvs_sigbus_install(), 0);
    CHECK_EQ(pvs_sigbus_install(), 0); /* a second time must not make ours its own predecessor */
    volatile uint8_t *hole = foreign_hole();
    if (sigsetjmp(back, 1) == 0)
        CHECK_EQ(*hole, 1); /* not reached */
    CHECK_EQ(foreign, SIGBUS);
}

TEST(a_foreign_sigbus_without_a_handler_ends_the_process)
{
    volatile uint8_t *hole = foreign_hole();
    pid_t child = fork();
    if (child == 0) {
        CHECK(freopen("/dev/null", "w", stderr) != NULL);
        signal(SIGBUS, SIG_DFL);
        pvs_sigbus_install();
        _exit(*hole);
    }
    int status;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFSIGNALED(status));
    CHECK_EQ(WTERMSIG(status), SIGBUS);
}
