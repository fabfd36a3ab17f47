/* SPDX-License-Identifier: Apache-2.0 */

/* A backend of a version that does not exist. Nothing of it but init may be called. */

#include <stdlib.h>

#include "websocket_bridge.h"

uint64_t init(void);
uint64_t configure(char *key, char *value);
ws_peer_info query(char *endpoint, size_t protocols, char **protocol, size_t headers,
                   ws_http_header *header, websocket *ws);
void cleanup(void);

uint64_t init(void)
{
    return WEBSOCKSY_API_VERSION + 1;
}

uint64_t configure(char *key, char *value)
{
    (void)key;
    (void)value;
    abort();
}

ws_peer_info query(char *endpoint, size_t protocols, char **protocol, size_t headers,
                   ws_http_header *header, websocket *ws)
{
    (void)endpoint;
    (void)protocols;
    (void)protocol;
    (void)headers;
    (void)header;
    (void)ws;
    abort();
}

void cleanup(void)
{
    abort();
}
