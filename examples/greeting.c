/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Greeting: each client is sent what the header X-Greeting of its opening request says, which the configuration
 * sets: here, the protocol that carries the WebSocket. Whatever the client sends is ignored.
 *
 *     cc -shared -fPIC -I include -o mod_websocket_greeting.so examples/greeting.c
 *
 *     <Location /greeting>
 *         SetHandler websocket-handler
 *         WebSocketHandler modules/mod_websocket_greeting.so greeting_init
 *         RequestHeader set X-Greeting "expr=%{SERVER_PROTOCOL}"
 *     </Location>
 *
 * It shows that headers are there for on_connect to read, and that on_connect may send.
 */

#include <string.h>

#include "websocket_plugin.h"

static void * CALLBACK on_connect(const WebSocketServer *server)
{
    static char accepted;
    const char *greeting = server->header_get(server, "X-Greeting");

    if (greeting == NULL) {
        greeting = "Hello";
    }
    server->send(server, MESSAGE_TYPE_TEXT, (const unsigned char *) greeting, strlen(greeting));
    return &accepted; /* NULL would refuse the client */
}

static size_t CALLBACK on_message(void *connection, const WebSocketServer *server, const int type,
                                  unsigned char *buffer, const size_t size)
{
    (void)connection;
    (void)server;
    (void)type;
    (void)buffer;
    return size;
}

static WebSocketPlugin plugin = {
    sizeof(WebSocketPlugin), WEBSOCKET_PLUGIN_VERSION_0,
    NULL,       /* destroy */
    on_connect,
    on_message,
    NULL        /* on_disconnect */
};

extern EXPORT WebSocketPlugin * CALLBACK greeting_init(void)
{
    return &plugin;
}
