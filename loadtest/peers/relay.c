/*
 * relay LISTEN_PORT WORKER_PORT…: the floor. Each client's connection gets one to a worker, in turns, and
 * bytes go to and fro, from one epoll, on one thread; nothing is parsed. What a proxy costs beyond this is
 * what it does.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ = 64 * 1024, EVENTS = 256 };

/* One end of a pair. What could not be written to it yet waits in `pending`. */
struct end {
    int fd;
    struct end *other;
    char *pending;
    size_t length;
    int closed;
};

static int epoll;
static char buffer[READ];
static struct end listener;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static struct sockaddr_in loopback(const char *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
}

static struct end *watched(int fd) {
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct end *end = calloc(1, sizeof *end);
    if (!end) die("calloc");
    end->fd = fd;
    /* Edge-triggered: writable is told without asking for it each time. */
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = end};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
    return end;
}

/* Both ends are freed after the round of events, when nothing names them any more. */
static void close_pair(struct end *end) {
    if (end->closed) return;
    end->closed = end->other->closed = 1;
    close(end->fd);
    close(end->other->fd);
}

static void push(struct end *to) {
    while (to->length) {
        ssize_t written = write(to->fd, to->pending, to->length);
        if (written < 0) {
            if (errno != EAGAIN) close_pair(to);
            return;
        }
        memmove(to->pending, to->pending + written, to->length -= (size_t)written);
    }
}

/* Passes on what can be read, unless what was read before still waits: then the writable end goes on. */
static void pull(struct end *from, int to_the_end) {
    struct end *to = from->other;
    while (!from->closed && !to->length) {
        ssize_t got = read(from->fd, buffer, READ);
        if (got < 0 && errno == EAGAIN) return;
        if (got <= 0) return close_pair(from);
        ssize_t written = write(to->fd, buffer, (size_t)got);
        if (written < 0 && errno != EAGAIN && errno != ENOTCONN) return close_pair(from);
        if (written < 0) written = 0;
        if (written < got) {
            if (!to->pending && !(to->pending = malloc(READ))) die("malloc");
            memcpy(to->pending, buffer + written, to->length = (size_t)(got - written));
        }
        /* Less than there was room for: nothing more is there yet, and the next edge tells. */
        if (got < READ && !to_the_end) return;
    }
}

static void accept_all(char **workers, int count) {
    static unsigned turn;
    for (int fd; (fd = accept4(listener.fd, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        struct sockaddr_in worker = loopback(workers[turn++ % (unsigned)count]);
        int up = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        if (up < 0) die("socket");
        if (connect(up, (struct sockaddr *)&worker, sizeof worker) && errno != EINPROGRESS) {
            close(up);
            close(fd);
            continue;
        }
        struct end *a = watched(fd), *b = watched(up);
        a->other = b;
        b->other = a;
    }
}

int main(int count, char **arguments) {
    if (count < 3) {
        fprintf(stderr, "usage: relay LISTEN_PORT WORKER_PORT...\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    struct sockaddr_in address = loopback(arguments[1]);
    int on = 1;
    listener.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener.fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener.fd, (struct sockaddr *)&address, sizeof address)) die("bind");
    if (listen(listener.fd, 4096)) die("listen");
    if ((epoll = epoll_create1(0)) < 0) die("epoll_create1");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &listener};
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener.fd, &event);
    for (struct epoll_event events[EVENTS];;) {
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        if (ready < 0 && errno != EINTR) die("epoll_wait");
        for (int i = 0; i < ready; i++) {
            struct end *end = events[i].data.ptr;
            if (end == &listener) {
                accept_all(arguments + 2, count - 2);
                continue;
            }
            if (end->closed) continue;
            if (events[i].events & EPOLLOUT && end->length) {
                push(end);
                if (!end->closed && !end->length) pull(end->other, 1);
            }
            unsigned last = events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR);
            if (!end->closed && (last || events[i].events & EPOLLIN)) pull(end, last != 0);
        }
        /* Each pair once: by whichever end comes first. */
        for (int i = 0; i < ready; i++) {
            struct end *end = events[i].data.ptr;
            if (end == &listener || !end->closed || !end->other) continue;
            struct end *other = end->other;
            end->other = NULL;
            other->other = NULL;
            for (int j = i + 1; j < ready; j++)
                if (events[j].data.ptr == other || events[j].data.ptr == end) events[j].data.ptr = &listener;
            free(end->pending);
            free(other->pending);
            free(other);
            free(end);
        }
    }
}
