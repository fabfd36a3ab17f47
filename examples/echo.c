/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Echo: sends every message back to the client it came from.
 *
 *     cc -shared -fPIC -I include -o mod_websocket_echo.so examples/echo.c
 *
 *     <Location /echo>
 *         SetHandler websocket-handler
 *         WebSocketHandler modules/mod_websocket_echo.so echo_init
 *     </Location>
 */

#include "websocket_plugin.h"

/*
 * The one function that a plugin must have. It needs no data of its own for a connection, so there
 * is no on_connect: everyone may connect, and `connection` is always NULL.
 */
static size_t CALLBACK on_message(void *connection, const WebSocketServer *server, const int type,
                                  unsigned char *buffer, const size_t size)
{
    (void)connection;

    /* `type` is text or binary, and the answer is of the same type. */
    return server->send(server, type, buffer, size);
}

static WebSocketPlugin plugin = {
    sizeof(WebSocketPlugin), WEBSOCKET_PLUGIN_VERSION_0,
    NULL,       /* destroy */
    NULL,       /* on_connect */
    on_message,
    NULL        /* on_disconnect */
};

extern EXPORT WebSocketPlugin * CALLBACK echo_init(void)
{
    return &plugin;
}
