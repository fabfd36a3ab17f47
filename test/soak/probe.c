/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Tells what its process holds. For tests only. Each message is answered with "pid=P heap=B": the process, and the bytes
 * that are allocated and not freed in it, by AddressSanitizer's count. Pools of httpd's are not among them: APR takes
 * their memory from the kernel.
 */

#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "websocket_plugin.h"

/* Of AddressSanitizer's runtime; gcc does not always ship the header. */
extern size_t __sanitizer_get_current_allocated_bytes(void);

static size_t CALLBACK on_message(void *private, const WebSocketServer *server, const int type,
                                  unsigned char *buffer, const size_t size)
{
    char answer[80];

    (void)private;
    (void)type;
    (void)buffer;
    (void)size;
    snprintf(answer, sizeof(answer), "pid=%ld heap=%zu", (long)getpid(),
             __sanitizer_get_current_allocated_bytes());
    return server->send(server, MESSAGE_TYPE_TEXT, (const unsigned char *)answer, strlen(answer));
}

static WebSocketPlugin plugin = {
    sizeof(WebSocketPlugin), WEBSOCKET_PLUGIN_VERSION_0, NULL, NULL, on_message, NULL
};

extern EXPORT WebSocketPlugin * CALLBACK probe_init(void)
{
    return &plugin;
}
