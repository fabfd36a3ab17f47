/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A backend that does what the request says.
 *
 * Options: host, port, framing and framing-config are those of every answer; lag is how many
 * milliseconds a query takes; refuse refuses the configuration; others are refused too.
 *
 * Endpoints: one that ends in /none refuses; in /fifo answers with a transport that is not
 * supported; in /own with a framing that is not registered: all as text. Otherwise the transport is
 * detected from the host. The subprotocol is the last one offered.
 *
 * Each call appends a line to the file that the environment's WEBSOCKET_DEBUG_TRAIL names; query
 * writes all that it was given, and whether another query was at work.
 */

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "websocket_bridge.h"

static char *host, *port, *framing, *framing_config;
static long lag;
static unsigned inits;
static volatile int at_work;

static void trail(const char *format, ...)
{
    const char *path = getenv("WEBSOCKET_DEBUG_TRAIL");
    char line[4096];
    va_list arguments;
    int file;

    va_start(arguments, format);
    vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    strcat(line, "\n");
    if (path == NULL || (file = open(path, O_WRONLY | O_APPEND | O_CREAT, 0666)) < 0)
        return;
    if (write(file, line, strlen(line)) < 0)
        perror("backend_debug");
    close(file);
}

static char *copy(const char *text)
{
    return (text != NULL) ? strdup(text) : NULL;
}

static int64_t own(uint8_t *data, size_t length, size_t last_read, ws_operation *opcode,
                   void **framing_data, const char *config)
{
    (void)last_read;
    (void)framing_data;
    (void)config;
    if (data != NULL)
        *opcode = ws_frame_text;
    return (int64_t)length;
}

/* As the interface of websocksy has them: exported, and without prototypes elsewhere. */
uint64_t init(void);
uint64_t configure(char *key, char *value);
ws_peer_info query(char *endpoint, size_t protocols, char **protocol, size_t headers,
                   ws_http_header *header, websocket *ws);
void cleanup(void);

uint64_t init(void)
{
    trail("init %u", ++inits);
    return WEBSOCKSY_API_VERSION;
}

uint64_t configure(char *key, char *value)
{
    trail("configure %s=%s", key, value);
    if (strcmp(key, "lag") == 0)
        lag = atol(value);
    else if (strcmp(key, "host") == 0)
        host = copy(value);
    else if (strcmp(key, "port") == 0)
        port = copy(value);
    else if (strcmp(key, "framing") == 0)
        framing = copy(value);
    else if (strcmp(key, "framing-config") == 0)
        framing_config = copy(value);
    else
        return 1;
    value[0] = '\0';
    return 0;
}

static int ends(const char *text, const char *tail)
{
    return strlen(text) >= strlen(tail) && strcmp(text + strlen(text) - strlen(tail), tail) == 0;
}

ws_peer_info query(char *endpoint, size_t protocols, char **protocol, size_t headers,
                   ws_http_header *header, websocket *ws)
{
    ws_peer_info peer = { peer_transport_detect, NULL, NULL, NULL, NULL, 0 };
    size_t i;

    if (at_work++)
        trail("overlap");
    trail("query %s", endpoint);
    for (i = 0; i < protocols; i++)
        trail("protocol %s", protocol[i]);
    for (i = 0; i < headers; i++)
        trail("header %s=%s", header[i].tag, header[i].value);
    trail("socket %d %d %d %u %u %s %lu %lu %s", ws->ws_fd, ws->peer_fd, (int)ws->state,
          ws->websocket_version, ws->want_upgrade, ws->socket_key != NULL ? ws->socket_key : "-",
          (unsigned long)ws->headers, (unsigned long)ws->protocols, ws->request_path);
    trail("now %d", (int)(time(NULL) - ws->last_event) / 5);
    if (lag > 0) {
        struct timespec wait;

        wait.tv_sec = lag / 1000;
        wait.tv_nsec = lag % 1000 * 1000000;
        nanosleep(&wait, NULL);
    }
    at_work--;
    peer.protocol = (protocols > 0) ? protocols - 1 : protocols;
    if (ends(endpoint, "/none"))
        return peer;
    peer.host = copy(host);
    peer.port = copy(port);
    peer.framing_config = copy(framing_config);
    if (framing != NULL)
        peer.framing = core_framing(framing);
    if (ends(endpoint, "/own"))
        peer.framing = own;
    if (ends(endpoint, "/fifo"))
        peer.transport = peer_fifo_tx;
    /* The strings are this function's to change. */
    endpoint[0] = '\0';
    return peer;
}

void cleanup(void)
{
    trail("cleanup");
    free(host);
    free(port);
    free(framing);
    free(framing_config);
    host = port = framing = framing_config = NULL;
}
