/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Prints the layout that a C compiler gives to websocket_plugin.h, one fact a line: "sizeof TYPE
 * N", "offsetof TYPE MEMBER N" or "value NAME N". The Rust mirror of the header is compared with
 * it.
 */

#include <stddef.h>
#include <stdio.h>

#include "websocket_plugin.h"

#define SIZEOF(type) printf("sizeof %s %lu\n", #type, (unsigned long)sizeof(type))
#define OFFSETOF(type, member) \
    printf("offsetof %s %s %lu\n", #type, #member, (unsigned long)offsetof(type, member))
#define VALUE(name) printf("value %s %d\n", #name, name)

int main(void)
{
    SIZEOF(WebSocketServer);
    OFFSETOF(WebSocketServer, size);
    OFFSETOF(WebSocketServer, version);
    OFFSETOF(WebSocketServer, state);
    OFFSETOF(WebSocketServer, request);
    OFFSETOF(WebSocketServer, header_get);
    OFFSETOF(WebSocketServer, header_set);
    OFFSETOF(WebSocketServer, protocol_count);
    OFFSETOF(WebSocketServer, protocol_index);
    OFFSETOF(WebSocketServer, protocol_set);
    OFFSETOF(WebSocketServer, send);
    OFFSETOF(WebSocketServer, close);

    SIZEOF(WebSocketPlugin);
    OFFSETOF(WebSocketPlugin, size);
    OFFSETOF(WebSocketPlugin, version);
    OFFSETOF(WebSocketPlugin, destroy);
    OFFSETOF(WebSocketPlugin, on_connect);
    OFFSETOF(WebSocketPlugin, on_message);
    OFFSETOF(WebSocketPlugin, on_disconnect);

    VALUE(MESSAGE_TYPE_INVALID);
    VALUE(MESSAGE_TYPE_TEXT);
    VALUE(MESSAGE_TYPE_BINARY);
    VALUE(MESSAGE_TYPE_CLOSE);
    VALUE(MESSAGE_TYPE_PING);
    VALUE(MESSAGE_TYPE_PONG);
    VALUE(WEBSOCKET_SERVER_VERSION_1);
    VALUE(WEBSOCKET_PLUGIN_VERSION_0);
    return 0;
}
