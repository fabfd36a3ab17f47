/* SPDX-License-Identifier: Apache-2.0
 *
 * A plugin that keeps httpd's request and answers from it, all connection long:
 *
 *     env NAME     what r->subprocess_env has, or "-"
 *     protocol     r->protocol
 *     pump N SIZE  sends N binary messages of SIZE bytes, and then "pumped"
 *
 * Anything else is sent back. Unlike the other plugins it is built with httpd's headers.
 */
#include <httpd.h>
#include <apr_tables.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "websocket_plugin.h"

static size_t say(const WebSocketServer *server, const char *text)
{
    return server->send(server, MESSAGE_TYPE_TEXT, (const unsigned char *) text, strlen(text));
}

static void * CALLBACK on_connect(const WebSocketServer *server)
{
    return server->request(server);
}

static size_t CALLBACK on_message(void *connection, const WebSocketServer *server, const int type,
                                  unsigned char *buffer, const size_t size)
{
    request_rec *r = connection;
    char text[256] = "";
    unsigned long count, length;

    memcpy(text, buffer, size < sizeof(text) ? size : sizeof(text) - 1);
    if (strncmp(text, "env ", 4) == 0) {
        const char *value = apr_table_get(r->subprocess_env, text + 4);
        return say(server, value != NULL ? value : "-");
    }
    if (strcmp(text, "protocol") == 0) {
        return say(server, r->protocol);
    }
    if (sscanf(text, "pump %lu %lu", &count, &length) == 2) {
        unsigned char *bytes = calloc(length, 1);
        while (bytes != NULL && count-- > 0) {
            server->send(server, MESSAGE_TYPE_BINARY, bytes, length);
        }
        free(bytes);
        return say(server, "pumped");
    }
    return server->send(server, type, buffer, size);
}

static WebSocketPlugin plugin = {
    sizeof(WebSocketPlugin), WEBSOCKET_PLUGIN_VERSION_0, NULL, on_connect, on_message, NULL
};

extern EXPORT WebSocketPlugin * CALLBACK request_init(void);
extern EXPORT WebSocketPlugin * CALLBACK request_init(void)
{
    return &plugin;
}
