/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A room: what a member says is sent to all of them, by the thread that heard it. Members wait in `send` for each other.
 */
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>

#include "websocket_plugin.h"

struct member {
    const WebSocketServer *server;
    struct member *next;
};

static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
static struct member *members;

static void *CALLBACK on_connect(const WebSocketServer *server)
{
    struct member *member = malloc(sizeof *member);
    if (member != NULL) {
        member->server = server;
        pthread_rwlock_wrlock(&lock);
        member->next = members;
        members = member;
        pthread_rwlock_unlock(&lock);
    }
    return member;
}

static size_t CALLBACK on_message(void *private, const WebSocketServer *server, int type,
                                  unsigned char *data, size_t size)
{
    struct member *member;
    (void)private;
    (void)server;
    pthread_rwlock_rdlock(&lock);
    for (member = members; member != NULL; member = member->next) {
        member->server->send(member->server, type, data, size);
    }
    pthread_rwlock_unlock(&lock);
    return 0;
}

static void CALLBACK on_disconnect(void *private, const WebSocketServer *server)
{
    struct member **member;
    (void)server;
    pthread_rwlock_wrlock(&lock);
    for (member = &members; *member != private; member = &(*member)->next) {
    }
    *member = (*member)->next;
    pthread_rwlock_unlock(&lock);
    free(private);
}

static WebSocketPlugin plugin = {
    sizeof(WebSocketPlugin), WEBSOCKET_PLUGIN_VERSION_0, NULL, on_connect, on_message, on_disconnect
};

extern EXPORT WebSocketPlugin *CALLBACK room_init(void)
{
    return &plugin;
}
