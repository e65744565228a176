/* SPDX-License-Identifier: Apache-2.0 */
/* traffic.c - see traffic.h. */
#include "traffic.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { HEADERS = 42, MAX_THREADS = 8, PATTERN = 4096 };

/* Behind the headers of every frame. */
struct tag {
    uint32_t magic, number;
    uint8_t sender, to, flow, spare;
};

enum { MAGIC = 0x70767321, SHORTEST = HEADERS + sizeof(struct tag) };

static struct traffic_guest guests[LAB_PORTS];
static uint8_t pattern[PATTERN + TRAFFIC_MAX_LEN];
static pthread_t thread[MAX_THREADS];
static uint32_t n_threads;
static _Atomic bool sending, flooding, finish;

/* ---- frames ---- */

static uint64_t
mac_of(uint32_t number)
{
    return number == TRAFFIC_EVERYBODY ? LAB_BROADCAST : number == TRAFFIC_NOBODY ? LAB_MAC(200) : LAB_MAC(number);
}

uint32_t
traffic_frame(uint8_t *frame, uint32_t sender, uint32_t to, uint32_t flow, uint32_t number)
{
    uint64_t state = (uint64_t)number << 16 | sender << 12 | to << 8 | flow;
    uint32_t span = lab_random(&state, 8) == 0 ? TRAFFIC_MAX_LEN - SHORTEST : 128;
    uint32_t len = SHORTEST + lab_random(&state, span + 1);
    struct tag tag = {
        .magic = MAGIC, .number = number, .sender = (uint8_t)sender, .to = (uint8_t)to, .flow = (uint8_t)flow
    };
    uint64_t source = sender == TRAFFIC_CONTROL ? LAB_MAC(100) : LAB_MAC(sender);

    lab_udp(frame, mac_of(to), source, (uint16_t)flow, len);
    memcpy(frame + HEADERS, &tag, sizeof tag);
    memcpy(frame + SHORTEST, pattern + lab_random(&state, PATTERN), len - SHORTEST);
    return len;
}

static void
hear_number(struct traffic_guest *g, uint32_t pair, const struct tag *tag)
{
    struct traffic_stream *s = &g->stream[tag->sender][tag->to][tag->flow];
    uint32_t word = tag->number / 64;

    if (word >= s->words) {
        uint32_t words = 2 * word + 64;
        s->heard = realloc(s->heard, words * sizeof *s->heard);
        CHECK(s->heard != NULL);
        memset(s->heard + s->words, 0, (words - s->words) * sizeof *s->heard);
        s->words = words;
    }
    CHECK((s->heard[word] >> tag->number % 64 & 1) == 0); /* a frame comes once */
    s->heard[word] |= 1ULL << tag->number % 64;
    CHECK(tag->number >= s->next[pair]); /* and in order */
    s->next[pair] = tag->number + 1;
}

static void
hear(struct traffic_guest *g, uint32_t pair, uint32_t len)
{
    struct tag tag;

    CHECK(len >= SHORTEST);
    memcpy(&tag, g->got + HEADERS, sizeof tag);
    CHECK_EQ(tag.magic, MAGIC);
    CHECK(tag.sender < TRAFFIC_SENDERS && tag.sender != g->port);
    CHECK(tag.to < TRAFFIC_DESTINATIONS && tag.flow < TRAFFIC_FLOWS);
    CHECK_EQ(traffic_frame(g->frame, tag.sender, tag.to, tag.flow, tag.number), len);
    CHECK(memcmp(g->frame, g->got, len) == 0);
    CHECK(tag.to == g->port || flooding);
    hear_number(g, pair, &tag);
    g->received++;
    g->rx_bytes += len;
}

/* ---- a guest's turn ---- */

static void
take_back(struct traffic_guest *g)
{
    for (uint32_t pair = 0; pair < g->pairs; pair++) {
        int n = pvd_tx_reap(g->lab->port[g->port].guest, pair);
        CHECK(n >= 0);
        g->taken += (uint64_t)n;
    }
}

static void
receive(struct traffic_guest *g)
{
    pvd_guest *guest = g->lab->port[g->port].guest;

    for (uint32_t pair = 0; pair < g->pairs; pair++) {
        int n;
        while ((n = pvd_rx(guest, pair, g->got, sizeof g->got, NULL)) >= 0)
            hear(g, pair, (uint32_t)n);
        CHECK_EQ(n, -EAGAIN);
    }
}

static void
post(struct traffic_guest *g)
{
    pvd_guest *guest = g->lab->port[g->port].guest;

    for (uint32_t pair = 0; pair < g->pairs; pair++) {
        CHECK(pvd_rx_fill(guest, pair, 256, NULL) >= 0);
        pvd_kick(guest, 2 * pair);
    }
}

/* Some frames by one pair: to ports, now and then to everybody or nobody, and a few that are none. */
static void
send_some(struct traffic_guest *g)
{
    static const struct pvd_layout spread = { .n_cuts = 3, .cuts = { 5, 12, 90 }, .flags = PVD_LAYOUT_INDIRECT };
    pvd_guest *guest = g->lab->port[g->port].guest;
    uint32_t n = 1 + lab_random(&g->seed, 8), flow = lab_random(&g->seed, TRAFFIC_FLOWS), pair = flow % g->pairs;

    for (uint32_t i = 0; i < n; i++) {
        const struct pvd_layout *layout = lab_random(&g->seed, 4) == 0 ? &spread : NULL;
        uint32_t to = lab_random(&g->seed, LAB_PORTS), kind = lab_random(&g->seed, 64);
        if (kind == 0 || to == g->port)
            to = TRAFFIC_NOBODY;
        else if (kind < 4 && flooding)
            to = TRAFFIC_EVERYBODY;
        uint32_t len = traffic_frame(g->frame, g->port, to, flow, g->sent[to][flow]);
        bool runt = kind == 63;
        if (pvd_tx(guest, pair, NULL, g->frame, runt ? 9 : len, layout) != 0)
            break;
        g->sent[to][flow] += !runt;
    }
    pvd_kick(guest, 2 * pair + 1);
}

static void
turn(struct traffic_guest *g)
{
    pthread_mutex_lock(&g->lock);
    take_back(g);
    if (sending)
        send_some(g);
    if (!g->lazy) {
        receive(g);
        post(g);
    }
    pthread_mutex_unlock(&g->lock);
}

static void *
play(void *arg)
{
    uint32_t first = (uint32_t)(uintptr_t)arg;

    while (!finish) {
        for (uint32_t i = first; i < guests[0].lab->conf.n_ports; i += n_threads)
            if (!guests[i].wanted)
                turn(&guests[i]);
        nanosleep(&(struct timespec){ .tv_nsec = 20000 }, NULL); /* the workers need the processor too */
    }
    return NULL;
}

/* ---- for control ---- */

void
traffic_start(struct lab *lab, uint32_t threads, uint64_t seed)
{
    CHECK(threads <= MAX_THREADS && lab->conf.n_ports <= LAB_PORTS);
    for (uint32_t i = 0; i < sizeof pattern; i++)
        pattern[i] = (uint8_t)(i * 0x9e3779b1U >> 24);
    for (uint32_t i = 0; i < lab->conf.n_ports; i++) {
        uint32_t pairs = pvd_n_rings(lab->port[i].guest) / 2;
        guests[i] = (struct traffic_guest){ .lab = lab, .port = i, .pairs = pairs, .seed = seed * LAB_PORTS + i };
        CHECK(pairs <= TRAFFIC_PAIRS);
        CHECK_EQ(pthread_mutex_init(&guests[i].lock, NULL), 0);
        post(&guests[i]);
    }
    finish = false;
    n_threads = threads;
    for (uint32_t i = 0; i < threads; i++)
        CHECK_EQ(pthread_create(&thread[i], NULL, play, (void *)(uintptr_t)i), 0);
}

void
traffic_end(void)
{
    finish = true;
    for (uint32_t i = 0; i < n_threads; i++)
        pthread_join(thread[i], NULL);
    for (uint32_t i = 0; i < guests[0].lab->conf.n_ports; i++) {
        struct traffic_stream *s = &guests[i].stream[0][0][0];
        for (uint32_t k = 0; k < sizeof guests[i].stream / sizeof *s; k++)
            free(s[k].heard);
        pthread_mutex_destroy(&guests[i].lock);
    }
}

void
traffic_set(bool send, bool flood)
{
    flooding = flood; /* first: who sends looks at it */
    sending = send;
}

struct traffic_guest *
traffic_take(uint32_t port)
{
    guests[port].wanted = true;
    pthread_mutex_lock(&guests[port].lock);
    return &guests[port];
}

void
traffic_give(struct traffic_guest *guest)
{
    guest->wanted = false;
    pthread_mutex_unlock(&guest->lock);
}

void
traffic_collect(struct traffic_guest *guest)
{
    take_back(guest);
    receive(guest);
}
