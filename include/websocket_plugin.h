/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The interface between mod_websocket and its plugins.
 *
 * A plugin is a shared library with one exported function, its init function. The configuration
 * names both:
 *
 *     <Location /echo>
 *         SetHandler websocket-handler
 *         WebSocketHandler modules/mod_websocket_echo.so echo_init
 *     </Location>
 *
 * init returns a WebSocketPlugin: a table of functions which the module calls when a client
 * connects, sends a message or leaves. Each of them is given a WebSocketServer: a table of
 * functions that work on the connection in question. A plugin that echoes what it hears:
 *
 *     static size_t CALLBACK on_message(void *connection, const WebSocketServer *server,
 *                                       const int type, unsigned char *buffer, const size_t size)
 *     {
 *         return server->send(server, type, buffer, size);
 *     }
 *
 *     static WebSocketPlugin plugin = {
 *         sizeof(WebSocketPlugin), WEBSOCKET_PLUGIN_VERSION_0, NULL, NULL, on_message, NULL
 *     };
 *
 *     extern EXPORT WebSocketPlugin * CALLBACK echo_init(void)
 *     {
 *         return &plugin;
 *     }
 *
 * Life of a plugin
 *     init runs when the configuration is read: in the parent process, as the user who starts
 *     httpd, and again on each pass over the configuration (a start takes two, every restart at
 *     least one more). Do not start threads there: they do not survive the fork into the child
 *     processes. destroy runs once for each configuration that goes away. Connections live in the
 *     child processes, so global variables are per process, never shared by the whole server.
 *
 * Life of a process
 *     How many connections share a process is the MPM's affair:
 *     - event and worker: any number at the same time, each with a WebSocketServer of its own.
 *     - prefork: one after the other. All callbacks come from the process's main thread, request
 *       works as long as the connection lasts, and all connections of a plugin have the same
 *       WebSocketServer: it, and any copy of it, leads to the one that was opened last, so what a
 *       plugin has kept from the first of them serves for all. A thread that is not joined in
 *       on_disconnect would send to the next client. Not so over HTTP/2, nor where the configuration
 *       says WebSocketDetach On: there it is as on event and worker.
 *     A plugin for any MPM counts on neither.
 *
 * Life of a connection
 *     on_connect, then any number of on_message, then on_disconnect exactly once. A connection
 *     which on_connect refuses sees nothing after it. A plugin without on_connect accepts everyone.
 *     on_disconnect may follow on_connect at once: the client has gone, or the connection would hold
 *     a thread of httpd's, since request was called, when WebSockets hold as many as they may.
 *
 * Threads
 *     - The callbacks of one connection never overlap, but they may come from different threads:
 *       keep nothing about a connection in thread-local storage.
 *     - Callbacks of different connections run at the same time, unless a process has but one (see
 *       above). Protect what they share.
 *     - send and close may be called from any thread, from the moment on_connect is entered until
 *       on_disconnect returns. After that the connection is gone: on_disconnect has to stop and
 *       join the threads that use it. It can do so safely, since a send in another thread never
 *       waits for on_disconnect, and returns 0 promptly once the connection is closing.
 *     - The other functions of WebSocketServer belong to the callbacks of that connection.
 *     - A callback may block, but it occupies one of the module's threads, or httpd's, meanwhile.
 *     - C++ exceptions and longjmp must not leave a callback.
 *
 * Memory
 *     - What a plugin passes in is copied, or used up, before the call returns. The caller may
 *       reuse or free it at once.
 *     - Strings from header_get and protocol_index belong to the module. They live as long as the
 *       connection, that is until on_disconnect returns, and must not be changed or freed.
 *     - The message buffer belongs to the module. The plugin may read and write its bytes during
 *       on_message and must not keep the pointer.
 *     - The WebSocketPlugin belongs to the plugin and must stay valid and unchanged until destroy.
 *       The module reads it and never writes to it.
 *
 * Units
 *     Every size is in bytes. Strings are NUL-terminated; messages are not.
 */

#ifndef WEBSOCKET_PLUGIN_H
#define WEBSOCKET_PLUGIN_H

/* For size_t, NULL and offsetof; and plugins may rely on this header for malloc and free. */
#include <stddef.h>
#include <stdlib.h>

#ifdef __cplusplus
extern "C" {
#endif

/*
 * CALLBACK is the calling convention of every function in this interface, EXPORT marks the init
 * function. On 32-bit Windows the convention decorates the name: WebSocketHandler wants
 * _echo_init@0 there.
 */
#ifdef _WIN32
#define CALLBACK __stdcall
#define EXPORT __declspec(dllexport)
#else
#define CALLBACK
#define EXPORT
#endif

/* Message types. on_message is given TEXT and BINARY only, send takes all but INVALID. */
#define MESSAGE_TYPE_INVALID (-1)
#define MESSAGE_TYPE_TEXT 0
#define MESSAGE_TYPE_BINARY 128
#define MESSAGE_TYPE_CLOSE 255
#define MESSAGE_TYPE_PING 256
#define MESSAGE_TYPE_PONG 257

/* Values of the version members. The history at the end tells what each one holds. */
#define WEBSOCKET_SERVER_VERSION_1 1
#define WEBSOCKET_PLUGIN_VERSION_0 0

struct request_rec;
struct _WebSocketServer;
struct _WebSocketState;
struct _WebSocketPlugin;

/*
 * Clients of drafts 76 and 75, whom only an administrator who loads websocket_draft76_module lets
 * in, look like any other. What is different: header_get gives NULL for Sec-WebSocket-Version;
 * send refuses text that is not UTF-8 (0 is returned); pings and pongs are accepted and nothing is
 * sent; a Close loses its code and reason; if the plugin selects no subprotocol, the response
 * names the first one that was offered.
 */

/* ---- What the module offers to the plugin ---- */

/**
 * The HTTP request that opened the connection. Only for on_connect: the request may be gone as
 * soon as on_connect returns, so do not keep the pointer. Include httpd's headers to look inside.
 * Asking for it keeps the request, and a thread of httpd's, for the life of the connection,
 * unless WebSocketDetach is On.
 * @param server The connection.
 * @return The request, or NULL when it is no longer there.
 */
typedef struct request_rec *(CALLBACK *WS_Request)(const struct _WebSocketServer *server);

/**
 * Look up a header of the request. Legal in every callback of the connection.
 * @param server The connection.
 * @param key The header's name; upper and lower case are the same.
 * @return The value, or NULL when the request has no such header. Do not change or free it; it
 *         lives as long as the connection.
 */
typedef const char *(CALLBACK *WS_Header_Get)(const struct _WebSocketServer *server,
                                              const char *key);

/**
 * Set a header of the response which opens the connection (status 101). Only for on_connect: later
 * calls have no effect, and neither has any call when on_connect refuses.
 *
 * Ignored, with a line in the error log: NULL, control characters in either string, and headers
 * that the module sets itself, namely Upgrade, Connection, Sec-WebSocket-*, Content-Length and
 * Transfer-Encoding. (For Sec-WebSocket-Protocol there is protocol_set.)
 * @param server The connection.
 * @param key The header's name. Copied.
 * @param value Its value; replaces an earlier one. Copied.
 */
typedef void (CALLBACK *WS_Header_Set)(const struct _WebSocketServer *server, const char *key,
                                       const char *value);

/**
 * Count the subprotocols that the client offers. Legal in every callback of the connection.
 * @param server The connection.
 * @return Their number, 0 if the client offers none.
 */
typedef size_t (CALLBACK *WS_Protocol_Count)(const struct _WebSocketServer *server);

/**
 * Name one of the subprotocols that the client offers. Legal in every callback of the connection.
 * @param server The connection.
 * @param index Position in the client's order of preference, starting at 0.
 * @return The name, or NULL when index is not below the count. Do not change or free it; it lives
 *         as long as the connection.
 */
typedef const char *(CALLBACK *WS_Protocol_Index)(const struct _WebSocketServer *server,
                                                  const size_t index);

/**
 * Select the subprotocol. Only for on_connect: later calls have no effect. If the plugin selects
 * none, the response names none; a browser that offered some then drops the connection.
 * @param server The connection.
 * @param protocol One of the offered names; anything else is ignored, with a line in the error
 *        log. A second call replaces the choice of the first. Copied.
 */
typedef void (CALLBACK *WS_Protocol_Set)(const struct _WebSocketServer *server,
                                         const char *protocol);

/**
 * Send one whole message or control frame. Legal from any thread, from the moment on_connect is
 * entered until on_disconnect returns. Messages from one thread keep their order, and no message
 * is ever mixed with another.
 *
 * Before the handshake's response has gone out, messages are queued behind it. So keep what is
 * sent inside on_connect well below WebSocketSendQueueLimit: nothing can leave before it returns.
 *
 * When the client reads more slowly than the plugin sends and more than WebSocketSendQueueLimit
 * bytes are waiting, send waits as long as the client takes 500 bytes a second, averaged over
 * httpd's Timeout. Callbacks of detached connections run on threads that also serve others: there
 * all sends of one callback together, to whichever clients, wait for Timeout at most, and not if
 * half of WebSocketThreads wait already. Then the client is closed with code 1008 and send returns
 * 0. It also returns 0 when the child ends.
 * @param server The connection.
 * @param type What to send:
 *        MESSAGE_TYPE_TEXT, a text message; the plugin must see to it that it is valid UTF-8;
 *        MESSAGE_TYPE_BINARY, a binary message;
 *        MESSAGE_TYPE_PING or MESSAGE_TYPE_PONG, at most 125 bytes of any content; the module
 *        answers a client's pings by itself;
 *        MESSAGE_TYPE_CLOSE, the end: either nothing, or two bytes of status code (the high byte
 *        first; one that may travel, see RFC 6455 section 7.4) and a reason in UTF-8, at most 125
 *        bytes together; nothing can be sent after it.
 * @param buffer The payload. May be NULL when size is 0. The caller may reuse it at once.
 * @param size Its length.
 * @return size when the message was accepted, that is written or queued: not a promise that it
 *         arrives. 0 when the connection is closing, or the type is unknown, or buffer is NULL
 *         though size is not 0, or a control frame is longer than 125 bytes, or a Close payload
 *         must not travel; the latter ones with a line in the error log. A message of length 0
 *         gives 0 in any case.
 */
typedef size_t (CALLBACK *WS_Send)(const struct _WebSocketServer *server, const int type,
                                   const unsigned char *buffer, const size_t size);

/**
 * End the connection with a Close frame that carries no status code; the client sees 1005. To give
 * one, use send with MESSAGE_TYPE_CLOSE. Legal from any thread, as send is. It does not wait for
 * the end: on_disconnect follows when the connection is gone.
 * @param server The connection.
 */
typedef void (CALLBACK *WS_Close)(const struct _WebSocketServer *server);

/*
 * A connection, as the plugin sees it. The pointer stays the same from on_connect to on_disconnect,
 * so it also identifies the connection among those that are open in the process.
 *
 * The structure grows at its tail only, and version stays 1 for plugins of version 0. Test for a
 * function that was added later by size:
 *
 *     server->size >= offsetof(WebSocketServer, later) + sizeof(server->later)
 */
typedef struct _WebSocketServer {
    unsigned int size;             /* sizeof(WebSocketServer), as the module knows it */
    unsigned int version;          /* WEBSOCKET_SERVER_VERSION_1 */
    struct _WebSocketState *state; /* the module's own; leave it alone */
    WS_Request request;
    WS_Header_Get header_get;
    WS_Header_Set header_set;
    WS_Protocol_Count protocol_count;
    WS_Protocol_Index protocol_index;
    WS_Protocol_Set protocol_set;
    WS_Send send;
    WS_Close close;
} WebSocketServer;

/* ---- What the plugin offers to the module ---- */

/**
 * The init function, the one that a plugin exports. It may be called several times while the
 * library is loaded, and may return the same structure each time. A plugin that is refused (see
 * WebSocketPlugin) is an error in the configuration.
 * @return The plugin; NULL when it cannot work.
 */
typedef struct _WebSocketPlugin *(CALLBACK *WS_Init)(void);

/**
 * Free what init set up. Called once, when the configuration that loaded the plugin goes away, in
 * the process that called init; child processes may end without it.
 * @param plugin What init returned.
 */
typedef void (CALLBACK *WS_Destroy)(struct _WebSocketPlugin *plugin);

/**
 * A client wants to connect; httpd has finished its own checks (access, authentication, origin).
 * The place to look at the request, to set response headers and to select a subprotocol. Messages
 * may be sent already, from here or from a thread started here; they follow the response.
 * @param server The connection. When the function refuses, the pointer dies with its return.
 * @return Anything but NULL accepts the connection, and is handed to its other callbacks. NULL
 *         refuses it: the client gets status 403, without the headers set here.
 */
typedef void *(CALLBACK *WS_OnConnect)(const WebSocketServer *server);

/**
 * A client's message has arrived whole: fragments joined, compression undone, text known to be
 * valid UTF-8. Control frames are the module's business and never come here.
 * @param plugin_private What on_connect returned; NULL for a plugin without on_connect.
 * @param server The connection.
 * @param type MESSAGE_TYPE_TEXT or MESSAGE_TYPE_BINARY.
 * @param buffer The message. The plugin may write to it; it is valid during the call only. There is
 *        no NUL at its end. Never NULL, but not to be read when size is 0.
 * @param size Its length, from 0 to WebSocketMaxMessageSize.
 * @return Ignored for plugins of version 0. By custom the number of bytes dealt with.
 */
typedef size_t (CALLBACK *WS_OnMessage)(void *plugin_private, const WebSocketServer *server,
                                        const int type, unsigned char *buffer, const size_t size);

/**
 * The connection is gone, whoever ended it. Called exactly once for each connection that was
 * accepted. Sends give 0 by now. The place to stop and join the threads that use the connection
 * and to free its data.
 * @param plugin_private What on_connect returned; NULL for a plugin without on_connect.
 * @param server The connection. The pointer, and every string got from it, dies with the return.
 */
typedef void (CALLBACK *WS_OnDisconnect)(void *plugin_private, const WebSocketServer *server);

/*
 * A plugin, as the module sees it. Functions other than on_message may be NULL. The module refuses
 * a plugin whose version it does not know, whose size is below that version's, or that lacks
 * on_message.
 */
typedef struct _WebSocketPlugin {
    unsigned int size;    /* sizeof(WebSocketPlugin), as the plugin knows it */
    unsigned int version; /* WEBSOCKET_PLUGIN_VERSION_0 */
    WS_Destroy destroy;
    WS_OnConnect on_connect;
    WS_OnMessage on_message;
    WS_OnDisconnect on_disconnect;
} WebSocketPlugin;

/*
 * Version history. Members are appended, never moved, changed or removed.
 *
 * WebSocketServer
 *     1  request, header_get, header_set, protocol_count, protocol_index, protocol_set, send, close
 *        (80 bytes with 64-bit pointers, 44 with 32-bit ones)
 *
 * WebSocketPlugin
 *     0  destroy, on_connect, on_message, on_disconnect
 *        (40 bytes with 64-bit pointers, 24 with 32-bit ones)
 */

#ifdef __cplusplus
}
#endif

#endif /* WEBSOCKET_PLUGIN_H */
