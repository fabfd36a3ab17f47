/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A backend and a framing as a binary of websocksy's time has them: this file uses no header of
 * ours, only the layout and the names that were compiled into such libraries, and is written the
 * way they were, with empty parameter lists. So it fails when the layout moves.
 *
 * The answer to every query is a framing of its own, "old", with no host but what the endpoint has
 * behind its last slash: a port of the loopback address. The configuration of the framing is the
 * value of the header that the option tag names. It refuses endpoints without a port.
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int64_t (*old_framing)(uint8_t *, size_t, size_t, int *, void **, const char *);

struct old_header {
    char *tag;
    char *value;
};

struct old_peer {
    int transport;
    char *host;
    char *port;
    old_framing framing;
    char *framing_config;
    size_t protocol;
};

struct old_socket {
    int ws_fd;
    uint8_t read_buffer[16384];
    size_t read_buffer_offset;
    int state;
    time_t last_event;
    size_t headers;
    struct old_header header[10];
    char *request_path;
    unsigned websocket_version;
    char *socket_key;
    unsigned want_upgrade;
    size_t protocols;
    char **protocol;
    struct old_peer peer;
    int peer_fd;
    uint8_t peer_buffer[16384];
    size_t peer_buffer_offset;
    void *peer_framing_data;
};

extern int core_register_framing(char *name, old_framing framing);
extern old_framing core_framing(char *name);

static char *tag;

/* One message for each byte that is the configuration's first one; text, whatever comes before. */
static int64_t old(uint8_t *data, size_t length, size_t last_read, int *opcode, void **framing_data,
                   const char *config)
{
    char *state;
    size_t i;

    (void)last_read;
    if (!data) {
        free(*framing_data);
        *framing_data = NULL;
        return 0;
    }
    if (!*framing_data)
        *framing_data = calloc(1, 1);
    state = *framing_data;
    for (i = 0; i < length; i++)
        if (data[i] == (uint8_t)(config ? config[0] : '.')) {
            *opcode = *state ? 2 : 1;
            *state = !*state;
            return (int64_t)i + 1;
        }
    return 0;
}

uint64_t init()
{
    return 1;
}

uint64_t configure(char *key, char *value)
{
    if (strcmp(key, "tag"))
        return 1;
    free(tag);
    tag = strdup(value);
    return 0;
}

struct old_peer query(char *endpoint, size_t protocols, char **protocol, size_t headers,
                      struct old_header *header, struct old_socket *ws)
{
    struct old_peer peer = {
        .transport = 1,
        .protocol = protocols,
    };
    char *port = strrchr(endpoint, '/');
    size_t i;

    if (!port || !port[1] || strcmp(ws->request_path, endpoint) || ws->websocket_version != 13
        || ws->protocols != protocols || ws->protocol != protocol || ws->peer_fd != -1
        || !ws->socket_key || strlen(ws->socket_key) != 24 || ws->peer_framing_data)
        return peer;
    for (i = 0; i < ws->headers; i++)
        if (strcmp(ws->header[i].tag, header[i].tag))
            return peer;
    peer.host = strdup("127.0.0.1");
    peer.port = strdup(port + 1);
    peer.framing = core_framing("old");
    for (i = 0; tag && i < headers; i++)
        if (!strcmp(header[i].tag, tag))
            peer.framing_config = strdup(header[i].value);
    return peer;
}

void cleanup()
{
    free(tag);
    tag = NULL;
}

static void __attribute__((constructor)) start()
{
    if (core_register_framing("old", old))
        fprintf(stderr, "backend_old: not registered\n");
}
