// SPDX-License-Identifier: Apache-2.0
// What the guests of the system tests say to each other: TCP and UDP of which every byte is checked.
//
//     traffic tcp-send ADDRESS PORT RATE     numbered words, at most RATE bytes per second, until killed
//     traffic tcp-recv PORT FILE             one connection; FILE says how many bytes have come, or what was wrong
//     traffic udp-echo PORT                  sends each datagram back, until killed
//     traffic udp-ask ADDRESS PORT ROUNDS DATAGRAMS SIZE [gso]
//                                            in each round sends DATAGRAMS of SIZE bytes, with `gso` in one call that
//                                            the kernel or the device cuts up (UDP_SEGMENT), and waits for every echo
//     traffic frame-send INTERFACE HEX...    sends Ethernet frames as they are
//
// IPv4 and IPv6; addresses are numeric. Built with -static by traffic.py, so that it runs in a guest of busybox alone.
// Exit status: 0 done, 1 what was printed.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/udp.h>
#include <netpacket/packet.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum {
    WORDS = 8192,         // of one read or write
    DATAGRAMS_MAX = 64,   // what one call with UDP_SEGMENT may hold (UDP_MAX_SEGMENTS of Linux before 6.10)
    DATAGRAM_MAX = 65507, // what UDP carries
    SOCKET_BUFFER = 4 << 20,
    ECHO_SECONDS = 20,
    FRAMES_MAX = 64,
    FRAME_MAX = 65549, // an Ethernet header and what IPv4 can be long
};

struct address {
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } u;
    socklen_t length;
};

static _Noreturn __attribute__((format(printf, 1, 2))) void
fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    (void)vprintf(format, arguments);
    va_end(arguments);
    (void)printf("\n");
    (void)fflush(stdout);
    _exit(1);
}

static int
checked(int result, const char *what)
{
    if (result < 0)
        fail("%s: %s", what, strerror(errno));
    return result;
}

static unsigned
number(const char *text, unsigned long highest)
{
    char *end;
    unsigned long value = strtoul(text, &end, 10);
    if (*text == '\0' || *end != '\0' || value == 0 || value > highest)
        fail("%s is not a number from 1 to %lu", text, highest);
    return (unsigned)value;
}

// The wildcard address of both families when text is NULL.
static struct address
parse(const char *text, const char *port_text)
{
    struct address address = { 0 };
    uint16_t port = htons((uint16_t)number(port_text, UINT16_MAX));
    if (text != NULL && inet_pton(AF_INET, text, &address.u.v4.sin_addr) == 1) {
        address.u.v4.sin_family = AF_INET;
        address.u.v4.sin_port = port;
        address.length = sizeof(address.u.v4);
        return address;
    }
    if (text != NULL && inet_pton(AF_INET6, text, &address.u.v6.sin6_addr) != 1)
        fail("%s is not an address", text);
    address.u.v6.sin6_family = AF_INET6;
    address.u.v6.sin6_port = port;
    address.length = sizeof(address.u.v6);
    return address;
}

static int
open_socket(const struct address *address, int type)
{
    int fd = checked(socket(address->u.any.sa_family, type, 0), "socket");
    int one = 1, size = SOCKET_BUFFER;
    checked(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)), "SO_REUSEADDR");
    if (type == SOCK_DGRAM) { // what is in flight must find room whatever each buffer counts for
        checked(setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)), "SO_RCVBUFFORCE");
        checked(setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)), "SO_SNDBUFFORCE");
    }
    return fd;
}

static int
connected(const char *text, const char *port, int type)
{
    struct address address = parse(text, port);
    int fd = open_socket(&address, type);
    checked(connect(fd, &address.u.any, address.length), "connect");
    return fd;
}

static int
bound(const char *port, int type)
{
    struct address address = parse(NULL, port);
    int fd = open_socket(&address, type);
    checked(bind(fd, &address.u.any, address.length), "bind");
    return fd;
}

static void
tcp_send(char **arguments)
{
    static uint64_t words[WORDS];
    int fd = connected(arguments[0], arguments[1], SOCK_STREAM);
    unsigned rate = number(arguments[2], UINT32_MAX);
    checked(setsockopt(fd, SOL_SOCKET, SO_MAX_PACING_RATE, &rate, sizeof(rate)), "SO_MAX_PACING_RATE");
    for (uint64_t next = 0;;) {
        for (size_t i = 0; i < WORDS; i++)
            words[i] = next++;
        for (size_t done = 0; done < sizeof(words);) {
            ssize_t sent = write(fd, (const char *)words + done, sizeof(words) - done);
            checked(sent < 0 ? -1 : 0, "write");
            done += (size_t)sent;
        }
    }
}

static void
tcp_recv(char **arguments)
{
    static uint64_t words[WORDS];
    int listener = bound(arguments[0], SOCK_STREAM);
    int file = checked(open(arguments[1], O_WRONLY | O_CREAT | O_TRUNC, 0644), arguments[1]);
    checked(listen(listener, 1), "listen");
    int fd = checked(accept(listener, NULL, NULL), "accept");
    uint64_t next = 0;
    size_t kept = 0; // bytes of a word that has not come whole
    for (;;) {
        ssize_t got = read(fd, (char *)words + kept, sizeof(words) - kept);
        if (got <= 0) {
            (void)dprintf(file, "connection ended: %s\n", got < 0 ? strerror(errno) : "closed");
            fail("connection ended");
        }
        size_t have = kept + (size_t)got;
        for (size_t i = 0; i < have / sizeof(*words); i++, next++) {
            if (words[i] != next) {
                (void)dprintf(file, "corrupt at byte %llu\n", (unsigned long long)(next * sizeof(*words)));
                fail("corrupt");
            }
        }
        kept = have % sizeof(*words);
        memmove(words, (char *)words + have - kept, kept);
        char line[32];
        int length = snprintf(line, sizeof(line), "%020llu\n", (unsigned long long)(next * sizeof(*words)));
        checked((int)pwrite(file, line, (size_t)length, 0), "pwrite");
    }
}

static void
udp_echo(char **arguments)
{
    static char data[DATAGRAM_MAX];
    int fd = bound(arguments[0], SOCK_DGRAM);
    for (;;) {
        struct address from = { .length = sizeof(from.u) };
        ssize_t got = recvfrom(fd, data, sizeof(data), 0, &from.u.any, &from.length);
        checked((int)got, "recvfrom");
        checked((int)sendto(fd, data, (size_t)got, 0, &from.u.any, from.length), "sendto");
    }
}

static void
fill(uint8_t *data, size_t size, uint32_t round, uint32_t index)
{
    uint32_t head[2] = { htonl(round), htonl(index) };
    memcpy(data, head, sizeof(head));
    for (size_t i = sizeof(head); i < size; i++)
        data[i] = (uint8_t)(round * 31 + index * 7 + i);
}

// Waits for the echoes of one round, in any order, each once.
static void
expect_echoes(int fd, uint32_t round, uint32_t datagrams, size_t size)
{
    static uint8_t data[DATAGRAM_MAX], wanted[DATAGRAM_MAX];
    bool seen[DATAGRAMS_MAX] = { false };
    for (uint32_t count = 0; count < datagrams; count++) {
        ssize_t got = recv(fd, data, sizeof(data), 0);
        if (got < 0)
            fail("round %u: %u of %u echoes came, then %s", round, count, datagrams, strerror(errno));
        uint32_t head[2];
        memcpy(head, data, sizeof(head));
        uint32_t index = ntohl(head[1]);
        fill(wanted, size, round, index);
        if ((size_t)got != size || index >= datagrams || seen[index] || memcmp(data, wanted, size) != 0)
            fail("round %u: an echo of %zd bytes, index %u, is wrong or came twice", round, got, index);
        seen[index] = true;
    }
}

static void
udp_ask(char **arguments)
{
    static uint8_t data[DATAGRAM_MAX];
    int fd = connected(arguments[0], arguments[1], SOCK_DGRAM);
    unsigned rounds = number(arguments[2], UINT32_MAX), datagrams = number(arguments[3], DATAGRAMS_MAX);
    size_t size = number(arguments[4], DATAGRAM_MAX);
    bool gso = arguments[5] != NULL;
    if (size < 2 * sizeof(uint32_t) || size * datagrams > sizeof(data))
        fail("a round of %u datagrams of %zu bytes can't be", datagrams, size);
    if (gso) {
        int segment = (int)size;
        checked(setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &segment, sizeof(segment)), "UDP_SEGMENT");
    }
    struct timeval limit = { .tv_sec = ECHO_SECONDS };
    checked(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)), "SO_RCVTIMEO");
    for (uint32_t round = 0; round < rounds; round++) {
        for (uint32_t index = 0; index < datagrams; index++)
            fill(data + index * size, size, round, index);
        size_t call = gso ? size * datagrams : size;
        for (size_t done = 0; done < size * datagrams; done += call)
            checked((int)send(fd, data + done, call, 0), "send");
        expect_echoes(fd, round, datagrams, size);
    }
    (void)printf("%u datagrams there and back\n", rounds * datagrams);
}

static size_t
unhex(const char *text, uint8_t *data, size_t room)
{
    size_t length = strlen(text) / 2;
    if (length > room)
        fail("a frame of %zu bytes can't be", length);
    for (size_t i = 0; i < length; i++) {
        unsigned byte;
        if (sscanf(text + 2 * i, "%2x", &byte) != 1)
            fail("%s is not hexadecimal", text);
        data[i] = (uint8_t)byte;
    }
    return length;
}

static void
frame_send(char **arguments)
{
    static uint8_t frame[FRAME_MAX];
    struct sockaddr_ll to = { .sll_family = AF_PACKET, .sll_ifindex = (int)if_nametoindex(arguments[0]) };
    checked(to.sll_ifindex == 0 ? -1 : 0, arguments[0]);
    int fd = checked(socket(AF_PACKET, SOCK_RAW, 0), "socket");
    for (char **text = arguments + 1; *text != NULL; text++) {
        size_t length = unhex(*text, frame, sizeof(frame));
        checked((int)sendto(fd, frame, length, 0, (struct sockaddr *)&to, sizeof(to)), "sendto");
    }
}

int
main(int count, char **arguments)
{
    static const struct {
        const char *name;
        int fewest, most;
        void (*run)(char **arguments);
    } modes[] = {
        { "tcp-send", 3, 3, tcp_send },
        { "tcp-recv", 2, 2, tcp_recv },
        { "udp-echo", 1, 1, udp_echo },
        { "udp-ask", 5, 6, udp_ask },
        { "frame-send", 2, 1 + FRAMES_MAX, frame_send },
    };
    for (size_t i = 0; count > 1 && i < sizeof(modes) / sizeof(*modes); i++) {
        if (strcmp(arguments[1], modes[i].name) == 0 && count - 2 >= modes[i].fewest && count - 2 <= modes[i].most) {
            modes[i].run(arguments + 2);
            return 0;
        }
    }
    fail("usage: see the head of traffic.c");
}
