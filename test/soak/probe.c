/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Tells what its process holds. For tests only. Text commands:
 *
 *     heap      answered with "pid=P heap=B": the process, and the bytes that are allocated and not freed in it, by
 *               AddressSanitizer's count. Pools of httpd's are not among them: APR takes their memory from the kernel
 *     profile   writes who allocated most of that into the sanitizer's log; answered with "ok"
 */

#define _POSIX_C_SOURCE 200809L

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "websocket_plugin.h"

/* Of AddressSanitizer's runtime; gcc does not always ship the header. */
extern size_t __sanitizer_get_current_allocated_bytes(void);
extern void __sanitizer_print_memory_profile(size_t top_percent, size_t max_contexts);

static size_t CALLBACK on_message(void *private, const WebSocketServer *server, const int type,
                                  unsigned char *buffer, const size_t size)
{
    char answer[80] = "ok";

    (void)private;
    (void)type;
    if (size == 7 && memcmp(buffer, "profile", 7) == 0) {
        __sanitizer_print_memory_profile(90, 20);
    } else {
        snprintf(answer, sizeof(answer), "pid=%ld heap=%zu", (long)getpid(),
                 __sanitizer_get_current_allocated_bytes());
    }
    return server->send(server, MESSAGE_TYPE_TEXT, (const unsigned char *)answer, strlen(answer));
}

static WebSocketPlugin plugin = {
    sizeof(WebSocketPlugin), WEBSOCKET_PLUGIN_VERSION_0, NULL, NULL, on_message, NULL
};

extern EXPORT WebSocketPlugin * CALLBACK probe_init(void)
{
    return &plugin;
}
