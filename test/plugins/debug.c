/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A probe: lets a client reach every function that the module offers to a plugin, so that tests can
 * check them from outside. For tests only: clients name files that it writes to. Needs C11.
 *
 * Text commands. Answers are text messages; where none is given, there is none.
 *
 *     version               WebSocketServer.version
 *     size                  WebSocketServer.size
 *     header: NAME          that request header, or "(null)"
 *     protocols             the offered subprotocols, joined by commas, or "(none)"
 *     protocol N            the offered subprotocol number N, or "(null)"
 *     request               what request() gives now: "non-null" or "null"
 *     request-connect       what it gave in on_connect (X-Debug-Request): also "not asked"
 *     send N                sends a binary message of N bytes: 0, 1, ... 255, 0, ...
 *     flood N SIZE          sends N such messages, ends when one is refused, then "sent=K", which
 *                           is also appended to the X-Debug-Trail file
 *     ping TEXT, pong TEXT  sends that control frame
 *     close                 calls close()
 *     close CODE REASON     sends a Close frame with them
 *     raw-close N           sends a Close frame of N times 'x', then "ret=K"
 *     type N [SIZE]         sends SIZE times 'x' (4 unless given) with type N, then "ret=K"
 *     nulls                 passes NULL wherever a pointer is due, then "ok"
 *     sleep MS              sleeps inside the callback, then "ok"
 *     scribble...           overwrites the whole message with '#' and sends it back
 *     set-late KEY: VALUE   header_set(), which must have no effect any more, then "ok"
 *     protocol-late NAME    protocol_set(), likewise
 *     overlaps              how often a callback of this connection ran into another one
 *     peak                  the most callbacks that ever ran at once in this process
 *
 * Anything else is answered with "unknown command". Binary messages come back as they are.
 *
 * Request headers steer on_connect, in this order:
 *
 *     X-Debug-Trail: /path/file      on_disconnect appends the line "disconnect" to that file
 *     X-Debug-Name: NAME             on_connect appends "connect NAME" there, and on_disconnect
 *                                    "disconnect NAME"
 *     X-Debug-Request: 1             calls request()
 *     X-Debug-Sleep: MS              sleeps
 *     X-Debug-Set: K: V|K: V         header_set() for each; a piece without colon has V = NULL
 *     X-Debug-Protocol: P            protocol_set()
 *     X-Debug-Greet: TEXT            sends that text from within on_connect
 *     X-Debug-Refuse: 1              refuses the connection
 *     X-Debug-Sleep-Last: MS         on_disconnect sleeps
 *     X-Debug-Greet-Thread: TEXT     sends that text from a thread started in on_connect
 *
 * In the keys, values and names of header_set and protocol_set, %XX stands for a byte. If the
 * environment variable WEBSOCKET_DEBUG_TRAIL names a file, init and destroy append the lines "init"
 * and "destroy" to it.
 */

#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "websocket_plugin.h"

struct connection {
    const WebSocketServer *server;
    const char *trail;            /* a request header: lives as long as the connection */
    const char *name;             /* another one */
    const char *request_answer;   /* what request() gave in on_connect */
    unsigned long sleep_last;     /* milliseconds */
    const char *thread_greeting;  /* NULL if there is no thread */
    pthread_t thread;
    atomic_int inside; /* callbacks of this connection that are running */
    atomic_int overlaps;
};

static atomic_int inside_all; /* callbacks of this library that are running */
static atomic_int peak;

static void enter(struct connection *connection)
{
    int now = atomic_fetch_add(&inside_all, 1) + 1;
    int before = atomic_load(&peak);

    while (now > before && !atomic_compare_exchange_weak(&peak, &before, now)) {
    }
    if (connection != NULL && atomic_fetch_add(&connection->inside, 1) != 0) {
        atomic_fetch_add(&connection->overlaps, 1);
    }
}

static void leave(struct connection *connection)
{
    if (connection != NULL) {
        atomic_fetch_sub(&connection->inside, 1);
    }
    atomic_fetch_sub(&inside_all, 1);
}

static void append(const char *path, const char *line)
{
    FILE *file = path != NULL ? fopen(path, "a") : NULL;

    if (file != NULL) {
        fprintf(file, "%s\n", line);
        fclose(file);
    }
}

/* "connect" or "disconnect", with the connection's name if it has one. */
static void append_event(const struct connection *connection, const char *event)
{
    const char *name = connection->name;
    char line[80];

    snprintf(line, sizeof(line), "%s%s%s", event, name != NULL ? " " : "", name != NULL ? name : "");
    append(connection->trail, line);
}

static size_t send_text(const WebSocketServer *server, const char *text)
{
    return server->send(server, MESSAGE_TYPE_TEXT, (const unsigned char *)text, strlen(text));
}

static void answer(const WebSocketServer *server, const char *format, ...)
{
    char text[200];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    send_text(server, text);
}

/* Sends counting bytes or 'x's, from memory that is overwritten and freed at once. */
static size_t send_bytes(const WebSocketServer *server, int type, size_t size, int counting)
{
    unsigned char *bytes = malloc(size + 1);
    size_t i, result;

    if (bytes == NULL) {
        return 0;
    }
    for (i = 0; i < size; i++) {
        bytes[i] = counting ? (unsigned char)(i & 0xff) : 'x';
    }
    result = server->send(server, type, bytes, size);
    memset(bytes, '!', size);
    free(bytes);
    return result;
}

static void send_close(const WebSocketServer *server, unsigned long code, const char *reason)
{
    size_t size = 2 + strlen(reason);
    unsigned char *payload = malloc(size);

    if (payload != NULL) {
        payload[0] = (unsigned char)(code >> 8);
        payload[1] = (unsigned char)code;
        memcpy(payload + 2, reason, size - 2);
        server->send(server, MESSAGE_TYPE_CLOSE, payload, size);
        free(payload);
    }
}

/* A copy of the text without the blanks around it and with %XX replaced. */
static char *decoded(const char *text, size_t length)
{
    char *copy = malloc(length + 1);
    size_t i, filled = 0;

    if (copy == NULL) {
        return NULL;
    }
    while (length > 0 && text[0] == ' ') {
        text++;
        length--;
    }
    while (length > 0 && text[length - 1] == ' ') {
        length--;
    }
    for (i = 0; i < length; i++) {
        if (text[i] == '%' && i + 2 < length) {
            char digits[3] = {text[i + 1], text[i + 2], '\0'};

            copy[filled++] = (char)strtoul(digits, NULL, 16);
            i += 2;
        } else {
            copy[filled++] = text[i];
        }
    }
    copy[filled] = '\0';
    return copy;
}

static void discard(char *text)
{
    if (text != NULL) {
        memset(text, '!', strlen(text));
        free(text);
    }
}

/* header_set with "KEY: VALUE", whose strings do not outlive the call. */
static void set_header(const WebSocketServer *server, const char *line, size_t length)
{
    const char *colon = memchr(line, ':', length);
    size_t key_length = colon != NULL ? (size_t)(colon - line) : length;
    char *key = decoded(line, key_length);
    char *value = colon != NULL ? decoded(colon + 1, length - key_length - 1) : NULL;

    server->header_set(server, key, value);
    discard(key);
    discard(value);
}

static void set_protocol(const WebSocketServer *server, const char *name)
{
    char *copy = decoded(name, strlen(name));

    server->protocol_set(server, copy);
    discard(copy);
}

static void answer_protocols(const WebSocketServer *server)
{
    size_t i, count = server->protocol_count(server), size = 1;
    char *list;

    for (i = 0; i < count; i++) {
        size += strlen(server->protocol_index(server, i)) + 1;
    }
    list = calloc(1, size);
    if (list == NULL) {
        return;
    }
    for (i = 0; i < count; i++) {
        if (i > 0) {
            strcat(list, ",");
        }
        strcat(list, server->protocol_index(server, i));
    }
    send_text(server, count > 0 ? list : "(none)");
    free(list);
}

static void flood(struct connection *connection, unsigned long count, size_t size)
{
    const WebSocketServer *server = connection->server;
    unsigned long sent = 0;
    char line[40];

    while (sent < count && send_bytes(server, MESSAGE_TYPE_BINARY, size, 1) == size) {
        sent++;
    }
    snprintf(line, sizeof(line), "sent=%lu", sent);
    append(connection->trail, line); /* the client may be out of reach by now */
    send_text(server, line);
}

static void sleep_ms(unsigned long ms)
{
    struct timespec left;

    left.tv_sec = (time_t)(ms / 1000);
    left.tv_nsec = (long)(ms % 1000) * 1000000L;
    while (nanosleep(&left, &left) != 0) {
    }
}

/* The rest of the text behind a prefix; NULL if it does not begin with it. */
static const char *behind(const char *text, const char *prefix)
{
    size_t length = strlen(prefix);

    return strncmp(text, prefix, length) == 0 ? text + length : NULL;
}

static void run(struct connection *connection, const char *command)
{
    const WebSocketServer *server = connection->server;
    const char *rest;
    char *end;

    if (strcmp(command, "version") == 0) {
        answer(server, "%u", server->version);
    } else if (strcmp(command, "size") == 0) {
        answer(server, "%u", server->size);
    } else if ((rest = behind(command, "header: ")) != NULL) {
        const char *value = server->header_get(server, rest);

        send_text(server, value != NULL ? value : "(null)");
    } else if (strcmp(command, "protocols") == 0) {
        answer_protocols(server);
    } else if ((rest = behind(command, "protocol ")) != NULL) {
        const char *name = server->protocol_index(server, (size_t)strtoull(rest, NULL, 10));

        send_text(server, name != NULL ? name : "(null)");
    } else if (strcmp(command, "request") == 0) {
        send_text(server, server->request(server) != NULL ? "non-null" : "null");
    } else if (strcmp(command, "request-connect") == 0) {
        send_text(server, connection->request_answer);
    } else if ((rest = behind(command, "send ")) != NULL) {
        send_bytes(server, MESSAGE_TYPE_BINARY, (size_t)strtoul(rest, NULL, 10), 1);
    } else if ((rest = behind(command, "flood ")) != NULL) {
        unsigned long count = strtoul(rest, &end, 10);

        flood(connection, count, (size_t)strtoul(end, NULL, 10));
    } else if ((rest = behind(command, "ping ")) != NULL) {
        server->send(server, MESSAGE_TYPE_PING, (const unsigned char *)rest, strlen(rest));
    } else if ((rest = behind(command, "pong ")) != NULL) {
        server->send(server, MESSAGE_TYPE_PONG, (const unsigned char *)rest, strlen(rest));
    } else if (strcmp(command, "close") == 0) {
        server->close(server);
    } else if ((rest = behind(command, "close ")) != NULL) {
        unsigned long code = strtoul(rest, &end, 10);

        send_close(server, code, *end == ' ' ? end + 1 : end);
    } else if ((rest = behind(command, "raw-close ")) != NULL) {
        size_t size = (size_t)strtoul(rest, NULL, 10);

        answer(server, "ret=%zu", send_bytes(server, MESSAGE_TYPE_CLOSE, size, 0));
    } else if ((rest = behind(command, "type ")) != NULL) {
        int type = (int)strtol(rest, &end, 10);
        size_t size = *end == ' ' ? (size_t)strtoul(end, NULL, 10) : 4;

        answer(server, "ret=%zu", send_bytes(server, type, size, 0));
    } else if (strcmp(command, "nulls") == 0) {
        int refused = server->header_get(server, NULL) == NULL
                      && server->send(server, MESSAGE_TYPE_TEXT, NULL, 5) == 0;

        server->header_set(server, NULL, NULL);
        server->protocol_set(server, NULL);
        send_text(server, refused ? "ok" : "not refused");
    } else if ((rest = behind(command, "sleep ")) != NULL) {
        sleep_ms(strtoul(rest, NULL, 10));
        send_text(server, "ok");
    } else if ((rest = behind(command, "set-late ")) != NULL) {
        set_header(server, rest, strlen(rest));
        send_text(server, "ok");
    } else if ((rest = behind(command, "protocol-late ")) != NULL) {
        set_protocol(server, rest);
        send_text(server, "ok");
    } else if (strcmp(command, "overlaps") == 0) {
        answer(server, "%d", atomic_load(&connection->overlaps));
    } else if (strcmp(command, "peak") == 0) {
        answer(server, "%d", atomic_load(&peak));
    } else {
        send_text(server, "unknown command");
    }
}

static void *greet(void *argument)
{
    struct connection *connection = argument;

    send_text(connection->server, connection->thread_greeting);
    return NULL;
}

/* What on_connect does, without the bookkeeping around it. */
static struct connection *open_connection(const WebSocketServer *server)
{
    struct connection *connection = calloc(1, sizeof(*connection));
    const char *text;

    if (connection == NULL) {
        return NULL;
    }
    connection->server = server;
    connection->trail = server->header_get(server, "X-Debug-Trail");
    connection->name = server->header_get(server, "X-Debug-Name");
    connection->request_answer = "not asked";
    text = server->header_get(server, "X-Debug-Sleep-Last");
    connection->sleep_last = text != NULL ? strtoul(text, NULL, 10) : 0;

    if (connection->name != NULL) {
        append_event(connection, "connect");
    }
    if (server->header_get(server, "X-Debug-Request") != NULL) {
        connection->request_answer = server->request(server) != NULL ? "non-null" : "null";
    }
    text = server->header_get(server, "X-Debug-Sleep");
    if (text != NULL) {
        sleep_ms(strtoul(text, NULL, 10));
    }
    text = server->header_get(server, "X-Debug-Set");
    while (text != NULL) {
        const char *bar = strchr(text, '|');

        set_header(server, text, bar != NULL ? (size_t)(bar - text) : strlen(text));
        text = bar != NULL ? bar + 1 : NULL;
    }
    text = server->header_get(server, "X-Debug-Protocol");
    if (text != NULL) {
        set_protocol(server, text);
    }
    text = server->header_get(server, "X-Debug-Greet");
    if (text != NULL) {
        send_text(server, text);
    }
    if (server->header_get(server, "X-Debug-Refuse") != NULL) {
        free(connection);
        return NULL;
    }
    connection->thread_greeting = server->header_get(server, "X-Debug-Greet-Thread");
    if (connection->thread_greeting != NULL
        && pthread_create(&connection->thread, NULL, greet, connection) != 0) {
        connection->thread_greeting = NULL;
    }
    return connection;
}

static void * CALLBACK on_connect(const WebSocketServer *server)
{
    struct connection *connection;

    enter(NULL);
    connection = open_connection(server);
    leave(NULL);
    return connection;
}

static size_t CALLBACK on_message(void *private, const WebSocketServer *server, const int type,
                                  unsigned char *buffer, const size_t size)
{
    struct connection *connection = private;

    enter(connection);
    if (type != MESSAGE_TYPE_TEXT) {
        server->send(server, type, buffer, size);
    } else if (size >= 8 && memcmp(buffer, "scribble", 8) == 0) {
        memset(buffer, '#', size);
        server->send(server, type, buffer, size);
    } else {
        char *command = calloc(1, size + 1);

        if (command != NULL) {
            if (size > 0) {
                memcpy(command, buffer, size);
            }
            run(connection, command);
            free(command);
        }
    }
    leave(connection);
    return size;
}

static void CALLBACK on_disconnect(void *private, const WebSocketServer *server)
{
    struct connection *connection = private;

    (void)server;
    enter(connection);
    if (connection->thread_greeting != NULL) {
        pthread_join(connection->thread, NULL);
    }
    if (atomic_load(&connection->overlaps) != 0) {
        append(connection->trail, "overlap");
    }
    append_event(connection, "disconnect");
    sleep_ms(connection->sleep_last);
    leave(connection);
    free(connection);
}

static void CALLBACK destroy(WebSocketPlugin *plugin)
{
    (void)plugin;
    append(getenv("WEBSOCKET_DEBUG_TRAIL"), "destroy");
}

static WebSocketPlugin plugin = {
    sizeof(WebSocketPlugin), WEBSOCKET_PLUGIN_VERSION_0,
    destroy, on_connect, on_message, on_disconnect
};

extern EXPORT WebSocketPlugin * CALLBACK debug_init(void)
{
    append(getenv("WEBSOCKET_DEBUG_TRAIL"), "init");
    return &plugin;
}
