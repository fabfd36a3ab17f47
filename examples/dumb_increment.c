/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Dumb increment: counts aloud. Every 50 ms the client gets the next number as a text message,
 * starting at 0; the text "reset\n" makes the count start over. Clients have to offer the
 * subprotocol dumb-increment-protocol.
 *
 *     cc -shared -fPIC -pthread -D_POSIX_C_SOURCE=200809L -I include \
 *        -o mod_websocket_dumb_increment.so examples/dumb_increment.c
 *
 *     <Location /dumb-increment>
 *         SetHandler websocket-handler
 *         WebSocketHandler modules/mod_websocket_dumb_increment.so dumb_increment_init
 *     </Location>
 *
 * It shows the three things that echo does without: data of one's own for each connection, a
 * subprotocol, and sending from a thread of one's own.
 */

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "websocket_plugin.h"

static const char PROTOCOL[] = "dumb-increment-protocol";
static const char RESET[] = "reset\n";
static const long INTERVAL_MS = 50;

/* What the plugin knows about one connection. */
struct counter {
    const WebSocketServer *server;
    pthread_t thread;
    pthread_mutex_t mutex; /* guards the two members below */
    unsigned long next;
    int stopping;
    pthread_cond_t stop; /* signalled when stopping is set */
};

static struct timespec after_interval(struct timespec time)
{
    time.tv_nsec += INTERVAL_MS * 1000000L;
    if (time.tv_nsec >= 1000000000L) {
        time.tv_nsec -= 1000000000L;
        time.tv_sec++;
    }
    return time;
}

/* The thread: one for each connection, from on_connect to on_disconnect. */
static void *count(void *argument)
{
    struct counter *counter = argument;
    struct timespec deadline;
    char text[32];
    int length;

    pthread_mutex_lock(&counter->mutex);
    while (!counter->stopping) {
        length = snprintf(text, sizeof(text), "%lu", counter->next++);

        /* send may have to wait for a slow client: never hold a lock across it that a callback of
         * the same connection wants. */
        pthread_mutex_unlock(&counter->mutex);
        counter->server->send(counter->server, MESSAGE_TYPE_TEXT, (const unsigned char *)text,
                              (size_t)length);
        pthread_mutex_lock(&counter->mutex);

        /* Wait for the interval to pass, or for on_disconnect. A plain sleep could not be cut
         * short, and on_disconnect would be late by as much. */
        clock_gettime(CLOCK_MONOTONIC, &deadline);
        deadline = after_interval(deadline);
        while (!counter->stopping
               && pthread_cond_timedwait(&counter->stop, &counter->mutex, &deadline) == 0) {
            /* Woken: by on_disconnect or for no reason. The loop's condition tells. */
        }
    }
    pthread_mutex_unlock(&counter->mutex);
    return NULL;
}

static int is_offered(const WebSocketServer *server, const char *protocol)
{
    size_t i;

    for (i = 0; i < server->protocol_count(server); i++) {
        if (strcmp(server->protocol_index(server, i), protocol) == 0) {
            return 1;
        }
    }
    return 0;
}

static void free_counter(struct counter *counter)
{
    pthread_cond_destroy(&counter->stop);
    pthread_mutex_destroy(&counter->mutex);
    free(counter);
}

static void * CALLBACK on_connect(const WebSocketServer *server)
{
    struct counter *counter;
    pthread_condattr_t attributes;

    if (!is_offered(server, PROTOCOL)) {
        return NULL; /* refused: the client gets status 403 */
    }
    server->protocol_set(server, PROTOCOL);

    counter = calloc(1, sizeof(*counter));
    if (counter == NULL) {
        return NULL;
    }
    counter->server = server;
    pthread_mutex_init(&counter->mutex, NULL);

    /* The monotonic clock does not jump when somebody sets the time. */
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&counter->stop, &attributes);
    pthread_condattr_destroy(&attributes);

    /* The thread may call send at once: the module keeps the messages until the handshake is
     * through. */
    if (pthread_create(&counter->thread, NULL, count, counter) != 0) {
        free_counter(counter);
        return NULL;
    }
    return counter; /* comes back as the first argument of the other callbacks */
}

static size_t CALLBACK on_message(void *connection, const WebSocketServer *server, const int type,
                                  unsigned char *buffer, const size_t size)
{
    struct counter *counter = connection;

    (void)server;

    /* A message is not a C string: it has a size and no NUL at its end. */
    if (type == MESSAGE_TYPE_TEXT && size == strlen(RESET) && memcmp(buffer, RESET, size) == 0) {
        pthread_mutex_lock(&counter->mutex);
        counter->next = 0;
        pthread_mutex_unlock(&counter->mutex);
    }
    return size;
}

static void CALLBACK on_disconnect(void *connection, const WebSocketServer *server)
{
    struct counter *counter = connection;

    (void)server;

    pthread_mutex_lock(&counter->mutex);
    counter->stopping = 1;
    pthread_cond_signal(&counter->stop);
    pthread_mutex_unlock(&counter->mutex);

    /* Once this function returns, `server` is gone: no thread may use it any more. */
    pthread_join(counter->thread, NULL);
    free_counter(counter);
}

static WebSocketPlugin plugin = {
    sizeof(WebSocketPlugin), WEBSOCKET_PLUGIN_VERSION_0,
    NULL, /* destroy */
    on_connect,
    on_message,
    on_disconnect
};

extern EXPORT WebSocketPlugin * CALLBACK dumb_increment_init(void)
{
    return &plugin;
}
