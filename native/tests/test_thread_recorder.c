/* SPDX-License-Identifier: Apache-2.0 */
/*
 * test_thread_recorder.c - the flight recorder and captures while several workers write: threads read records all the time, and control
 * asks for other samples, and makes and removes captures. Every record and every captured frame must be whole.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "recorder.h"
#include "traffic.h"

enum { WORKERS = 2, PORTS = 4, READERS = 2, ROUNDS = 150, TAG = 42, TAGGED = 54, MAGIC = 0x70767321 };

static struct lab lab;
static _Atomic bool finish;
static _Atomic uint64_t n_read;

/* The first `n` bytes of a frame of `len` are those of a frame that a guest has sent; one that is none has a few only. */
static void
check_frame(const uint8_t *bytes, uint32_t n, uint32_t len, uint8_t *scratch)
{
    uint32_t word[2];

    if (len < TAGGED || n < TAGGED) {
        CHECK(n <= len || len == 0);
        return;
    }
    memcpy(word, bytes + TAG, sizeof word);
    CHECK_EQ(word[0], MAGIC);
    uint8_t sender = bytes[TAG + 8], to = bytes[TAG + 9], flow = bytes[TAG + 10];
    CHECK(sender < PORTS && to < TRAFFIC_DESTINATIONS && flow < TRAFFIC_FLOWS);
    CHECK_EQ(traffic_frame(scratch, sender, to, flow, word[1]), len);
    CHECK(memcmp(scratch, bytes, n) == 0);
}

static void
check_record(const struct pvs_record *r, uint32_t ring, uint8_t *scratch)
{
    CHECK_EQ(r->count, 1);
    CHECK((ring == PVS_RECORD_FRAMES) == (r->kind == PVS_RECORD_FRAME));
    CHECK(r->drop < PVS_DROP_COUNT && r->time_ns <= lab_clock_ns());
    CHECK(r->n_bytes <= sizeof r->bytes);
    check_frame(r->bytes, r->n_bytes, r->len, scratch);
}

/* Follows all rings. */
static void *
read_records(void *arg)
{
    struct pvs_record *record = malloc(512 * sizeof *record);
    uint64_t next[WORKERS][2] = { 0 };
    uint8_t scratch[2048];

    CHECK(record != NULL);
    while (!finish) {
        nanosleep(&(struct timespec){ .tv_nsec = 20000 }, NULL); /* the workers need the processor too */
        for (uint32_t w = 0; w < WORKERS; w++)
            for (uint32_t ring = 0; ring < 2; ring++) {
                uint32_t n = pvs_records_read(lab.sw, w, ring, next[w][ring], record, 512);
                for (uint32_t i = 0; i < n; i++) {
                    CHECK(record[i].number >= next[w][ring]);
                    next[w][ring] = record[i].number + 1;
                    check_record(&record[i], ring, scratch);
                }
                n_read += n;
            }
    }
    free(record);
    return arg;
}

/* Take what there is of a capture. How many frames. */
static uint32_t
drain(pvs_capture *capture)
{
    static uint8_t got[PVS_MAX_FRAME], scratch[2048];
    struct pvs_captured seen;
    uint32_t n = 0;

    for (uint32_t w = 0; w < WORKERS; w++)
        for (uint64_t before = 0; pvs_capture_next(capture, w, &seen, got, sizeof got) == 1; n++) {
            CHECK(seen.time_ns >= before);
            before = seen.time_ns;
            CHECK_EQ(seen.n_bytes, seen.len < 300 ? seen.len : 300);
            check_frame(got, seen.n_bytes, seen.len, scratch);
        }
    return n;
}

static void
capture_for_a_while(uint64_t *seed, const struct pvs_bpf *filter, uint32_t n)
{
    const struct pvs_capture_conf conf = { .snaplen = 300, .ring_bytes = 256 * 1024, .filter = filter, .n = n };
    uint64_t deadline = lab_clock_ns() + LAB_DEADLINE_MS * 1000000ULL;
    struct pvs_port_conf *port = &lab.port[lab_random(seed, PORTS)].conf;
    pvs_capture *capture;
    uint32_t found = 0;

    CHECK_EQ(pvs_capture_create(lab.sw, &conf, &capture), 0);
    port->capture_in = port->capture_out = 1U << pvs_capture_slot(capture);
    lab_publish(&lab);
    while (found < 50) {
        found += drain(capture);
        CHECK(lab_clock_ns() < deadline);
    }
    port->capture_in = port->capture_out = 0;
    lab_publish(&lab);
    drain(capture);
    pvs_capture_destroy(capture);
}

TEST_EACH_RING(records_and_captured_frames_are_whole_while_workers_write)
{
    static const struct pvs_bpf short_ones[] = {
        { 0x80, 0, 0, 0 }, { 0x35, 1, 0, 120 }, { 0x06, 0, 0, 0xffff }, { 0x06, 0, 0, 0 }
    };
    struct lab_conf conf = lab_conf_default(PORTS);
    pthread_t reader[READERS];
    uint64_t seed = 7;

    conf.workers = WORKERS;
    conf.threads = true;
    lab_open(&lab, &conf);
    traffic_start(&lab, 1, 5);
    traffic_set(true, true);
    for (uint32_t i = 0; i < READERS; i++)
        CHECK_EQ(pthread_create(&reader[i], NULL, read_records, NULL), 0);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        bool filtered = lab_random(&seed, 2) != 0;
        int64_t asked = pvs_recorder_set(lab.sw, 1 + lab_random(&seed, 8), short_ones, filtered ? 4 : 0);
        CHECK_EQ(lab_wait(&lab, asked), 0);
        filtered = lab_random(&seed, 2) != 0;
        capture_for_a_while(&seed, short_ones, filtered ? 4 : 0);
    }
    traffic_end();
    finish = true;
    for (uint32_t i = 0; i < READERS; i++)
        CHECK_EQ(pthread_join(reader[i], NULL), 0);
    CHECK(n_read != 0);
    lab_close(&lab);
}

/* ---- a ring, without a switch ---- */

enum { WRITTEN = 300000 };

static struct pvs_recorder recorder;

static void *
write_records(void *arg)
{
    for (uint32_t i = 0; i < WRITTEN; i++) {
        struct pvs_record r = { .len = i, .count = i, .time_ns = i };
        memset(r.bytes, (uint8_t)i, sizeof r.bytes);
        pvs_record_put(&recorder.ring[0], &r);
    }
    finish = true;
    return arg;
}

/* The oldest are those that are written over next. */
TEST(no_record_is_torn_that_is_written_over_while_it_is_read)
{
    struct pvs_record record[4];
    pthread_t writer;

    CHECK_EQ(pvs_recorder_init(&recorder), 0);
    CHECK_EQ(pthread_create(&writer, NULL, write_records, NULL), 0);
    while (!finish) {
        uint32_t n = pvs_record_ring_read(&recorder.ring[0], 0, record, 4);
        for (uint32_t i = 0; i < n; i++) {
            const struct pvs_record *r = &record[i];
            CHECK(r->time_ns == r->number && r->len == r->number && r->count == r->number);
            for (uint32_t b = 0; b < sizeof r->bytes; b++)
                CHECK_EQ(r->bytes[b], (uint8_t)r->number);
        }
    }
    CHECK_EQ(pthread_join(writer, NULL), 0);
    pvs_recorder_fini(&recorder);
}
