/* SPDX-License-Identifier: Apache-2.0 */
/* test_channel.c - mail and spool, one thread (test_thread.c has two). */
#include "channel.h"

#include <string.h>

#include "test.h"

TEST(mail_is_first_in_first_out_and_holds_every_command)
{
    static struct pvs_mail mail;
    static char item[PVS_COMMANDS];
    mail.head = mail.tail = UINT32_MAX - 100; /* the indices wrap on the way */
    for (int round = 0; round < 3; round++) {
        CHECK(!pvs_mail_waiting(&mail));
        CHECK(pvs_mail_take(&mail) == NULL);
        for (int i = 0; i < PVS_COMMANDS; i++)
            pvs_mail_put(&mail, &item[i]);
        CHECK(pvs_mail_waiting(&mail));
        for (int i = 0; i < PVS_COMMANDS; i++)
            CHECK(pvs_mail_take(&mail) == &item[i]);
    }
}

static void
put(struct pvs_spool *spool, uint32_t len, uint8_t fill)
{
    uint8_t *place = pvs_spool_reserve(spool, len);
    CHECK(place != NULL);
    memset(place, fill, len);
    pvs_spool_commit(spool, len);
}

static void
take(struct pvs_spool *spool, uint32_t len, uint8_t fill)
{
    uint32_t got;
    const uint8_t *place = pvs_spool_peek(spool, &got);
    CHECK(place != NULL);
    CHECK_EQ(got, len);
    for (uint32_t i = 0; i < len; i++)
        CHECK_EQ(place[i], fill);
    CHECK(pvs_spool_peek(spool, &got) == place); /* it stays until it is dropped */
    pvs_spool_drop(spool, len);
}

TEST(spool_refuses_what_does_not_fit_and_goes_on)
{
    struct pvs_spool spool;
    uint32_t len;
    CHECK_EQ(pvs_spool_init(&spool, 256), 0);
    CHECK(pvs_spool_peek(&spool, &len) == NULL);
    for (uint8_t i = 0; i < 8; i++)
        put(&spool, 28, i); /* 32 bytes with its length */
    CHECK(pvs_spool_reserve(&spool, 0) == NULL);
    CHECK(pvs_spool_reserve(&spool, 28) == NULL);
    take(&spool, 28, 0);
    CHECK(pvs_spool_reserve(&spool, 29) == NULL);
    put(&spool, 28, 8);
    for (uint8_t i = 1; i <= 8; i++)
        take(&spool, 28, i);
    CHECK(pvs_spool_peek(&spool, &len) == NULL);
    pvs_spool_fini(&spool);
}

TEST(spool_does_not_split_a_record_at_its_end)
{
    struct pvs_spool spool;
    CHECK_EQ(pvs_spool_init(&spool, 256), 0);
    put(&spool, 100, 1); /* 104 */
    put(&spool, 100, 2); /* 208 */
    take(&spool, 100, 1);
    CHECK(pvs_spool_reserve(&spool, 101) == NULL); /* 48 at the end and 104 in front: neither holds 112 */
    put(&spool, 100, 3);
    take(&spool, 100, 2);
    take(&spool, 100, 3);
    pvs_spool_fini(&spool);
}

TEST(spool_agrees_with_a_plain_queue)
{
    enum { SIZE = 4096, QUEUE = 1024 };
    struct pvs_spool spool;
    uint32_t length[QUEUE], first = 0, last = 0, len;
    uint64_t seed = 1, refused = 0, wrapped = 0;
    CHECK_EQ(pvs_spool_init(&spool, SIZE), 0);
    spool.head = spool.tail = UINT32_MAX - 7; /* a multiple of 8, as all are: soon it wraps to 0 */
    for (int step = 0; step < 100000; step++) {
        seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
        uint32_t want = (uint32_t)(seed >> 33) % 700;
        if ((seed >> 60) % 2 == 0) {
            uint8_t *place = pvs_spool_reserve(&spool, want);
            if (place == NULL) {
                refused++;
                continue;
            }
            CHECK(place >= spool.data && place + want <= spool.data + SIZE);
            memset(place, (int)(last & 0xff), want);
            pvs_spool_commit(&spool, want);
            length[last++ % QUEUE] = want;
            wrapped += place == spool.data + 4;
        } else if (first != last) {
            take(&spool, length[first % QUEUE], (uint8_t)first);
            first++;
        } else {
            CHECK(pvs_spool_peek(&spool, &len) == NULL);
        }
    }
    CHECK(refused > 100);
    CHECK(wrapped > 1000);
    pvs_spool_fini(&spool);
}
