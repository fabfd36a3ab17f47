/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The interface between mod_websocket's bridge and libraries that extend it. Names, values and
 * layout are those of websocksy's API version 1: a library built for websocksy loads unchanged.
 *
 * The bridge connects a WebSocket with a socket, its peer. Two things can be added to it:
 *
 *     a framing   cuts the bytes that a peer sends into messages
 *     a backend   finds the peer of a connection
 *
 * A framing is a function. The library that has it tells the module its name from a constructor:
 *
 *     static int64_t pairs(uint8_t *data, size_t length, size_t last_read, ws_operation *opcode,
 *                          void **framing_data, const char *config)
 *     {
 *         return (data == NULL || length < 2) ? 0 : 2;
 *     }
 *
 *     static void __attribute__((constructor)) start(void)
 *     {
 *         core_register_framing("pairs", pairs);
 *     }
 *
 * httpd loads the library with its own LoadFile, behind the module; then the name can be used:
 *
 *     LoadModule websocket_module modules/mod_websocket.so
 *     LoadFile modules/framing_pairs.so
 *     <Location /peer>
 *         SetHandler websocket-handler
 *         WebSocketBridge tcp://127.0.0.1:7000
 *         WebSocketBridgeFraming pairs
 *     </Location>
 *
 * A backend is a library that exports the functions init, query and, if it wants to, configure and
 * cleanup. It is named where it is used, with its options:
 *
 *     WebSocketBridgeBackend modules/backend_database.so
 *     WebSocketBridgeOption table peers
 *
 * Life of a framing library
 *     Constructors run when the configuration is read: in the parent process, as the user who
 *     starts httpd. From the first registration on, the library and the module stay loaded until
 *     httpd ends. So constructors run once, however often httpd restarts, and a new version of the
 *     library, or of the module, is in use after stop and start only.
 *
 * Life of a backend
 *     init and then configure run when the configuration is read, also in the parent process. Do
 *     not start threads there, nor open what must not be shared: child processes are forked later,
 *     and queries run in them. cleanup runs when the configuration goes away, in the parent
 *     process; then the library is unloaded. (If it has framings too, it stays loaded, and init
 *     finds its variables as cleanup left them.) A start reads the configuration twice, each
 *     restart once more. One library has one set of options: two places of the configuration may
 *     name it with the same ones, and share it.
 *
 * Threads
 *     Calls of one framing function never overlap, and neither do the queries of one backend unless
 *     the administrator says that it is able to. They come from different threads, however: keep
 *     nothing in thread-local storage. Different framings and backends run at the same time. A
 *     query may wait for a database and the like: it holds a thread of httpd's, and other queries
 *     of the same backend. A framing must not wait.
 *
 * Units
 *     Sizes are in bytes. Strings are NUL-terminated.
 */

#ifndef WEBSOCKET_BRIDGE_H
#define WEBSOCKET_BRIDGE_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this interface: what init has to return. */
#define WEBSOCKSY_API_VERSION 1

/* Sizes of the arrays in struct websocket; they limit nothing in the module. */
#define WS_MAX_LINE 16384
#define PEER_BUFFER_SIZE 16384
#define WS_HEADER_LIMIT 10

/* The state of a connection. A backend sees ws_http. */
typedef enum {
    ws_new = 0,
    ws_http = 1,
    ws_open = 2,
    ws_closed = 3
} ws_state;

/*
 * What is to become of the bytes that a framing takes. The others are opcodes of RFC 6455 section
 * 5.2 that are no messages: choosing one of them ends the connection.
 */
typedef enum {
    ws_frame_continuation = 0,
    ws_frame_text = 1,   /* a text message; sent as binary if it is not valid UTF-8 */
    ws_frame_binary = 2, /* a binary message */
    ws_frame_close = 8,
    ws_frame_ping = 9,
    ws_frame_pong = 10,
    ws_frame_discard = 11 /* nothing: the bytes are dropped */
} ws_operation;

/* How a peer is reached. */
typedef enum {
    peer_transport_detect = 0, /* host begins with tcp://, udp://, unix:// or unix-dgram:// */
    peer_tcp_client = 1,
    peer_udp_client = 2,
    peer_fifo_tx = 3, /* not supported: the connection is refused */
    peer_fifo_rx = 4, /* not supported */
    peer_unix_stream = 5,
    peer_unix_dgram = 6
} peer_transport;

/* A header of the request. */
typedef struct {
    char *tag;   /* the name, as the client wrote it */
    char *value; /* without blanks at both ends */
} ws_http_header;

/* ---- Framings ---- */

/**
 * A framing. Called when the peer has sent something, and again at once as long as it takes bytes
 * and some are left. When the peer has ended its stream, what is left then is one binary message.
 * No framing is called for datagrams: each is a message, text if it is valid UTF-8.
 * @param data What the peer has sent and no call has taken: length bytes, which may be changed, and
 *        a NUL byte behind them. Do not keep the pointer. NULL in the last call for a connection.
 * @param length The number of bytes.
 * @param last_read How many of them, at the end, came with the peer's latest sending: what is before
 *        them was there in an earlier call.
 * @param opcode Where the framing says what the bytes that it takes are. It is ws_frame_binary
 *        before each call. NULL in the last call.
 * @param framing_data A pointer of the framing's own for this connection, NULL at first. If it is
 *        not NULL when the connection ends there is a last call, with data NULL and length 0, to
 *        free what it points to; a child process may end without it.
 * @param config The framing's configuration, which may be empty; NULL if there is none. It lives as
 *        long as the connection.
 * @return How many bytes, from the first one on, are a message; 0 to wait for more. A negative
 *         value, or more than length, ends the connection with close code 1011.
 */
typedef int64_t (*ws_framing)(uint8_t *data, size_t length, size_t last_read, ws_operation *opcode,
                              void **framing_data, const char *config);

/**
 * Make a framing known. Exported by the module; for constructors.
 * @param name Its name in the configuration, in UTF-8. Copied. A framing that has it already, also
 *        a built-in one, is replaced, with a line on standard error.
 * @param framing The function.
 * @return 0; 1 if name or framing is NULL, or name is not UTF-8.
 */
uint64_t core_register_framing(char *name, ws_framing framing);

/**
 * Find a framing, so that query can return it. Exported by the module; legal at any time and from
 * any thread.
 * @param name Its name: that of a registered one, or auto, binary, separator, newline, fixedlength,
 *        dynamic32 or json. May be NULL.
 * @return The framing; auto if there is none of this name. Never NULL. It may also be called, with
 *         a framing_data of its own.
 */
ws_framing core_framing(char *name);

/* ---- Backends ---- */

/*
 * Where a connection goes. The three strings are NULL or come from malloc, calloc or strdup; the
 * module frees them.
 */
typedef struct {
    peer_transport transport;
    char *host;           /* name, address or path; NULL refuses the connection */
    char *port;           /* a number; NULL if host has one or needs none */
    ws_framing framing;   /* NULL stands for auto */
    char *framing_config; /* the framing's configuration; NULL if it needs none */
    size_t protocol;      /* index of the subprotocol to announce; too large for none */
} ws_peer_info;

/*
 * A connection. It exists for query only, and only what is marked is filled in; the rest is zero
 * and there for its place. Nothing that is changed in it has an effect.
 */
typedef struct {
    int ws_fd; /* -1 */
    uint8_t read_buffer[WS_MAX_LINE];
    size_t read_buffer_offset;
    ws_state state;    /* ws_http */
    time_t last_event; /* now */

    size_t headers;                         /* how many are in header */
    ws_http_header header[WS_HEADER_LIMIT]; /* the first ones; query is given all */

    char *request_path;         /* the same as query's endpoint */
    unsigned websocket_version; /* 13 */
    char *socket_key;           /* the value of Sec-WebSocket-Key; NULL if there is none */
    unsigned want_upgrade;      /* 1 */

    size_t protocols; /* the same as query's */
    char **protocol;  /* the same as query's */

    ws_peer_info peer;
    int peer_fd; /* -1 */
    uint8_t peer_buffer[PEER_BUFFER_SIZE];
    size_t peer_buffer_offset;
    void *peer_framing_data;
} websocket;

/**
 * Set the backend up; the function init. Called first, once each time that the library is loaded.
 * @return WEBSOCKSY_API_VERSION; the module refuses a library that returns anything else.
 */
typedef uint64_t (*ws_backend_init)(void);

/**
 * Take an option; the function configure, which may be missing. Called behind init, once for each
 * option in the order of the configuration.
 * @param key The option's name. It lives as long as the call.
 * @param value Its value. It lives as long as the call.
 * @return 0; anything else refuses the option, and the configuration with it.
 */
typedef uint64_t (*ws_backend_configure)(char *key, char *value);

/**
 * Find the peer of a connection that wants to open; the function query. All that it is given lives
 * as long as the call, and may be changed.
 * @param endpoint Path and query string of the request, as they came.
 * @param protocols How many subprotocols the client offers; 0 if it offers none.
 * @param protocol Their names. By custom a backend takes * in its own configuration to accept any.
 * @param headers How many headers there are.
 * @param header The request's headers, without Connection, Upgrade, Sec-WebSocket-Key,
 *        Sec-WebSocket-Version and Sec-WebSocket-Protocol.
 * @param ws The connection.
 * @return The peer.
 */
typedef ws_peer_info (*ws_backend_query)(char *endpoint, size_t protocols, char **protocol,
                                         size_t headers, ws_http_header *header, websocket *ws);

/**
 * Free what init and configure set up; the function cleanup, which may be missing. Called last, in
 * the process that called init; child processes may end without it.
 */
typedef void (*ws_backend_cleanup)(void);

/* The four in one structure; the module uses it nowhere. */
typedef struct {
    ws_backend_init init;
    ws_backend_configure config;
    ws_backend_query query;
    ws_backend_cleanup cleanup;
} ws_backend;

#ifdef __cplusplus
}
#endif

#endif /* WEBSOCKET_BRIDGE_H */
