/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Plugins that must be refused when the configuration is read, one for each reason, and the
 * smallest one that must not.
 */

#include "websocket_plugin.h"

static size_t CALLBACK on_message(void *connection, const WebSocketServer *server, const int type,
                                  unsigned char *buffer, const size_t size)
{
    (void)connection;
    return server->send(server, type, buffer, size);
}

static WebSocketPlugin wrong_version = {sizeof(WebSocketPlugin), 7, NULL, NULL, on_message, NULL};

static WebSocketPlugin wrong_size = {4, WEBSOCKET_PLUGIN_VERSION_0, NULL, NULL, on_message, NULL};

static WebSocketPlugin no_message = {
    sizeof(WebSocketPlugin), WEBSOCKET_PLUGIN_VERSION_0, NULL, NULL, NULL, NULL
};

static WebSocketPlugin minimal = {
    sizeof(WebSocketPlugin), WEBSOCKET_PLUGIN_VERSION_0, NULL, NULL, on_message, NULL
};

extern EXPORT WebSocketPlugin * CALLBACK broken_null_init(void)
{
    return NULL;
}

extern EXPORT WebSocketPlugin * CALLBACK broken_version_init(void)
{
    return &wrong_version;
}

extern EXPORT WebSocketPlugin * CALLBACK broken_size_init(void)
{
    return &wrong_size;
}

extern EXPORT WebSocketPlugin * CALLBACK broken_message_init(void)
{
    return &no_message;
}

extern EXPORT WebSocketPlugin * CALLBACK minimal_init(void)
{
    return &minimal;
}
