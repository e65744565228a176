/* SPDX-License-Identifier: Apache-2.0 */
/* virtqueue_lab.c - see virtqueue_lab.h. */
#include "virtqueue_lab.h"

#include <sys/mman.h>

static pvs_switch *sw;
static pvs_port *port;
static uint64_t made_with;

pvd_guest *guest;
pvs_memory *memory;
struct pvs_vq vq;
struct pvs_seg seg[PVS_MAX_SEGS];
struct pvs_chain chain;
uint64_t scratch;
enum pvs_broken broken;

struct pvs_ring_conf
vq_conf(void)
{
    struct pvd_vring v;
    CHECK_EQ(pvd_vring_get(guest, 1, &v), 0);
    return (struct pvs_ring_conf){
        .desc_uva = v.desc_uva,
        .avail_uva = v.avail_uva,
        .used_uva = v.used_uva,
        .features = made_with,
        .num = v.num,
        .base = pvd_vring_base(guest, 1),
    };
}

void
vq_set_up(uint64_t features, uint32_t num)
{
    struct pvs_switch_conf sc = { .n_workers = 1, .cpus = { -1 } };
    struct pvd_conf conf;

    pvd_conf_default(&conf);
    conf.queue_size = num;
    conf.features = made_with = features;
    conf.n_regions = 2;
    conf.flags = PVD_CONF_ADJACENT;
    CHECK_EQ(pvs_switch_create(&sc, &sw), 0);
    CHECK_EQ(pvs_port_create(sw, 1, &port), 0);
    CHECK_EQ(pvd_guest_create(&conf, &guest), 0);
    memory = lab_map(port, guest);
    scratch = pvd_scratch_gpa(guest);
    broken = PVS_BROKEN_NONE;
    struct pvs_ring_conf rc = vq_conf();
    CHECK_EQ(pvs_vq_attach(&vq, memory, &rc), 0);
}

void
vq_tear_down(void)
{
    pvs_memory_destroy(memory);
    pvd_guest_destroy(guest);
    CHECK_EQ(pvs_port_destroy(port), 0);
    pvs_switch_destroy(sw);
}

pvs_memory *
vq_one_region(uint64_t size, uint64_t offset)
{
    pvs_region *region;
    pvs_memory *m;
    int fd = memfd_create("test", MFD_CLOEXEC);
    CHECK_EQ(ftruncate(fd, (off_t)(size + offset)), 0);
    CHECK_EQ(pvs_region_map(port, fd, 0, size, VQ_UVA, offset, &region), 0);
    CHECK_EQ(pvs_memory_create(&region, 1, &m), 0);
    pvs_region_unref(region);
    close(fd);
    return m;
}
