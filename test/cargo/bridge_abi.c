/* SPDX-License-Identifier: Apache-2.0 */

/* As abi.c, for websocket_bridge.h. */

#include <stddef.h>
#include <stdio.h>

#include "websocket_bridge.h"

#define SIZEOF(type) printf("sizeof %s %lu\n", #type, (unsigned long)sizeof(type))
#define OFFSETOF(type, member) \
    printf("offsetof %s %s %lu\n", #type, #member, (unsigned long)offsetof(type, member))
#define VALUE(name) printf("value %s %ld\n", #name, (long)name)

int main(void)
{
    SIZEOF(ws_http_header);
    OFFSETOF(ws_http_header, tag);
    OFFSETOF(ws_http_header, value);

    SIZEOF(ws_peer_info);
    OFFSETOF(ws_peer_info, transport);
    OFFSETOF(ws_peer_info, host);
    OFFSETOF(ws_peer_info, port);
    OFFSETOF(ws_peer_info, framing);
    OFFSETOF(ws_peer_info, framing_config);
    OFFSETOF(ws_peer_info, protocol);

    SIZEOF(websocket);
    OFFSETOF(websocket, ws_fd);
    OFFSETOF(websocket, read_buffer);
    OFFSETOF(websocket, read_buffer_offset);
    OFFSETOF(websocket, state);
    OFFSETOF(websocket, last_event);
    OFFSETOF(websocket, headers);
    OFFSETOF(websocket, header);
    OFFSETOF(websocket, request_path);
    OFFSETOF(websocket, websocket_version);
    OFFSETOF(websocket, socket_key);
    OFFSETOF(websocket, want_upgrade);
    OFFSETOF(websocket, protocols);
    OFFSETOF(websocket, protocol);
    OFFSETOF(websocket, peer);
    OFFSETOF(websocket, peer_fd);
    OFFSETOF(websocket, peer_buffer);
    OFFSETOF(websocket, peer_buffer_offset);
    OFFSETOF(websocket, peer_framing_data);

    SIZEOF(ws_backend);
    OFFSETOF(ws_backend, init);
    OFFSETOF(ws_backend, config);
    OFFSETOF(ws_backend, query);
    OFFSETOF(ws_backend, cleanup);

    SIZEOF(ws_state);
    SIZEOF(ws_operation);
    SIZEOF(peer_transport);

    VALUE(WEBSOCKSY_API_VERSION);
    VALUE(WS_MAX_LINE);
    VALUE(PEER_BUFFER_SIZE);
    VALUE(WS_HEADER_LIMIT);
    VALUE(ws_new);
    VALUE(ws_http);
    VALUE(ws_open);
    VALUE(ws_closed);
    VALUE(ws_frame_continuation);
    VALUE(ws_frame_text);
    VALUE(ws_frame_binary);
    VALUE(ws_frame_close);
    VALUE(ws_frame_ping);
    VALUE(ws_frame_pong);
    VALUE(ws_frame_discard);
    VALUE(peer_transport_detect);
    VALUE(peer_tcp_client);
    VALUE(peer_udp_client);
    VALUE(peer_fifo_tx);
    VALUE(peer_fifo_rx);
    VALUE(peer_unix_stream);
    VALUE(peer_unix_dgram);
    return 0;
}
