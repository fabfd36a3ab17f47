/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A hammer: sends from many threads at once. For tests only: clients name files that it writes to.
 * Needs C11.
 *
 * Text commands:
 *
 *     go T N SIZE   starts T threads (1 to 999), each of which sends N binary messages (1 to
 *                   1000000) of SIZE bytes (15 or more) and ends early when one is refused. Message
 *                   number n of thread t begins with "t=%03d n=%06d ", both counted from 0, and is
 *                   filled up with the thread's letter: 'A' for 0 to 'Z' for 25, then 'A' again
 *     late [PATH]   starts a thread that sends the binary message "late" every millisecond and goes
 *                   on for 50 ms after on_disconnect has returned, which no plugin may do: the
 *                   module must withstand it and give 0. The thread then appends to the file the
 *                   line "late accepted=A refused=R", which counts the sends after that return
 *
 * There is no answer except "error: ..." for a command that cannot be obeyed. Every other message
 * comes back as it is.
 */

#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "websocket_plugin.h"

enum { PREFIX_SIZE = 15, MAX_THREADS = 999, MAX_MESSAGES = 1000000, MAX_SIZE = 1 << 26 };

enum { LATE_MS = 50, LATE_GRACE_MS = 5 };

struct worker {
    struct worker *next;
    const WebSocketServer *server;
    pthread_t thread;
    int number;
    int messages;
    size_t size;
};

/* Belongs to its thread alone once `gone` is set. */
struct late {
    struct late *next;
    const WebSocketServer *server;
    atomic_int gone;
    char path[];
};

struct connection {
    struct worker *workers;
    struct late *lates;
};

static void sleep_ms(long ms)
{
    struct timespec time;

    time.tv_sec = ms / 1000;
    time.tv_nsec = (ms % 1000) * 1000000L;
    nanosleep(&time, NULL);
}

static void *work(void *argument)
{
    const struct worker *worker = argument;
    unsigned char *message = malloc(worker->size + 1);
    int n;

    if (message == NULL) {
        return NULL;
    }
    memset(message, 'A' + worker->number % 26, worker->size);
    for (n = 0; n < worker->messages; n++) {
        char prefix[PREFIX_SIZE + 20];

        snprintf(prefix, sizeof(prefix), "t=%03d n=%06d ", worker->number, n);
        memcpy(message, prefix, PREFIX_SIZE);
        if (worker->server->send(worker->server, MESSAGE_TYPE_BINARY, message, worker->size) == 0) {
            break;
        }
    }
    free(message);
    return NULL;
}

static const char *go(struct connection *connection, const WebSocketServer *server,
                      const char *arguments)
{
    int threads, messages, size, t;

    if (sscanf(arguments, "%d %d %d", &threads, &messages, &size) != 3 || threads < 1
        || threads > MAX_THREADS || messages < 1 || messages > MAX_MESSAGES || size < PREFIX_SIZE
        || size > MAX_SIZE) {
        return "error: expected go T N SIZE";
    }
    for (t = 0; t < threads; t++) {
        struct worker *worker = calloc(1, sizeof(*worker));

        if (worker == NULL) {
            return "error: no memory";
        }
        worker->server = server;
        worker->number = t;
        worker->messages = messages;
        worker->size = (size_t)size;
        if (pthread_create(&worker->thread, NULL, work, worker) != 0) {
            free(worker);
            return "error: no thread";
        }
        worker->next = connection->workers;
        connection->workers = worker;
    }
    return NULL;
}

static void *send_late(void *argument)
{
    static const unsigned char message[] = {'l', 'a', 't', 'e'};
    struct late *late = argument;
    int accepted = 0, refused = 0, ms;
    FILE *file;

    while (!atomic_load(&late->gone)) {
        late->server->send(late->server, MESSAGE_TYPE_BINARY, message, sizeof(message));
        sleep_ms(1);
    }
    sleep_ms(LATE_GRACE_MS); /* gone is set shortly before on_disconnect returns */
    for (ms = LATE_GRACE_MS; ms < LATE_MS; ms++) {
        if (late->server->send(late->server, MESSAGE_TYPE_BINARY, message, sizeof(message)) != 0) {
            accepted++;
        } else {
            refused++;
        }
        sleep_ms(1);
    }
    file = late->path[0] != '\0' ? fopen(late->path, "a") : NULL;
    if (file != NULL) {
        fprintf(file, "late accepted=%d refused=%d\n", accepted, refused);
        fclose(file);
    }
    free(late);
    return NULL;
}

static const char *start_late(struct connection *connection, const WebSocketServer *server,
                              const char *path)
{
    struct late *late = calloc(1, sizeof(*late) + strlen(path) + 1);
    pthread_t thread;

    if (late == NULL) {
        return "error: no memory";
    }
    late->server = server;
    strcpy(late->path, path);
    if (pthread_create(&thread, NULL, send_late, late) != 0) {
        free(late);
        return "error: no thread";
    }
    pthread_detach(thread);
    late->next = connection->lates;
    connection->lates = late;
    return NULL;
}

static void * CALLBACK on_connect(const WebSocketServer *server)
{
    (void)server;
    return calloc(1, sizeof(struct connection));
}

static size_t CALLBACK on_message(void *private, const WebSocketServer *server, const int type,
                                  unsigned char *buffer, const size_t size)
{
    struct connection *connection = private;
    const char *error = NULL;
    char command[4096];

    if (type != MESSAGE_TYPE_TEXT || size < 3 || size >= sizeof(command)
        || (memcmp(buffer, "go ", 3) != 0 && (size < 4 || memcmp(buffer, "late", 4) != 0))) {
        return server->send(server, type, buffer, size);
    }
    memcpy(command, buffer, size);
    command[size] = '\0';
    if (command[0] == 'g') {
        error = go(connection, server, command + 3);
    } else {
        error = start_late(connection, server, command[4] == ' ' ? command + 5 : "");
    }
    if (error != NULL) {
        server->send(server, MESSAGE_TYPE_TEXT, (const unsigned char *)error, strlen(error));
    }
    return size;
}

static void CALLBACK on_disconnect(void *private, const WebSocketServer *server)
{
    struct connection *connection = private;
    struct worker *worker = connection->workers;
    struct late *late = connection->lates;

    (void)server;
    while (worker != NULL) {
        struct worker *next = worker->next;

        pthread_join(worker->thread, NULL);
        free(worker);
        worker = next;
    }
    free(connection);
    while (late != NULL) {
        struct late *next = late->next; /* read first: the thread frees what is gone */

        atomic_store(&late->gone, 1);
        late = next;
    }
}

static WebSocketPlugin plugin = {
    sizeof(WebSocketPlugin), WEBSOCKET_PLUGIN_VERSION_0, NULL, on_connect, on_message, on_disconnect
};

extern EXPORT WebSocketPlugin * CALLBACK threads_init(void)
{
    return &plugin;
}
