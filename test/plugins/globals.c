/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A plugin in the manner of those for prefork: it counts on one connection per process. Its client is
 * in global variables, and like OpenSRF's translator it keeps the WebSocketServer of the process's
 * first connection for all that follow. For tests only.
 *
 * Text commands:
 *
 *     address       the address of this connection's own WebSocketServer, by way of itself
 *     copy          "by copy", by way of a copy of the first WebSocketServer
 *     late          starts a thread that sends "late" every millisecond, by way of the first
 *                   WebSocketServer, until that is refused
 *
 * Everything else comes back as "NAME N TEXT", by way of the first WebSocketServer: the client's name
 * (the request header X-Name), and the number of its messages so far. A request with the header
 * X-Refuse is refused. Binary messages are ignored.
 */

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "websocket_plugin.h"

static const WebSocketServer *first;
static WebSocketServer copy;
static struct {
    char name[32];
    unsigned long messages;
} client;

static void * CALLBACK globals_on_connect(const WebSocketServer *server)
{
    const char *name;

    if (first == NULL) {
        first = server;
        copy = *server;
    }
    if (first->header_get(first, "X-Refuse") != NULL) {
        return NULL;
    }
    name = first->header_get(first, "X-Name");
    snprintf(client.name, sizeof(client.name), "%s", name != NULL ? name : "nobody");
    client.messages = 0;
    return &client;
}

static void *send_late(void *unused)
{
    const struct timespec millisecond = {0, 1000000};

    (void)unused;
    while (first->send(first, MESSAGE_TYPE_TEXT, (const unsigned char *)"late", 4) != 0) {
        nanosleep(&millisecond, NULL);
    }
    return NULL;
}

static size_t CALLBACK globals_on_message(void *plugin_private, const WebSocketServer *server,
                                          const int type, unsigned char *buffer, const size_t size)
{
    const WebSocketServer *way = first;
    char text[200];
    pthread_t thread;

    (void)plugin_private;
    if (type != MESSAGE_TYPE_TEXT) {
        return 0;
    }
    client.messages++;
    if (size == 7 && memcmp(buffer, "address", size) == 0) {
        way = server;
        snprintf(text, sizeof(text), "%p", (const void *)server);
    } else if (size == 4 && memcmp(buffer, "copy", size) == 0) {
        way = &copy;
        snprintf(text, sizeof(text), "by copy");
    } else if (size == 4 && memcmp(buffer, "late", size) == 0) {
        if (pthread_create(&thread, NULL, send_late, NULL) == 0) {
            pthread_detach(thread);
        }
        return size;
    } else {
        snprintf(text, sizeof(text), "%s %lu %.*s", client.name, client.messages,
                 size < 100 ? (int)size : 100, (const char *)buffer);
    }
    return way->send(way, MESSAGE_TYPE_TEXT, (const unsigned char *)text, strlen(text));
}

static void CALLBACK globals_on_disconnect(void *plugin_private, const WebSocketServer *server)
{
    (void)plugin_private;
    (void)server;
    memset(&client, 0, sizeof(client));
}

static WebSocketPlugin plugin = {
    sizeof(WebSocketPlugin), WEBSOCKET_PLUGIN_VERSION_0, NULL, globals_on_connect, globals_on_message,
    globals_on_disconnect
};

extern EXPORT WebSocketPlugin * CALLBACK globals_init(void)
{
    return &plugin;
}
