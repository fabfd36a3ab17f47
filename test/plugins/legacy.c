/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A plugin in the manner of the years 2012 to 2020. It must build and run unchanged, so it keeps
 * the habits of its time: it relies on the header for malloc and free, compares the server's
 * version with 1 for equality, and has its own prototype for the init function.
 *
 * Text comes back in upper case (ASCII only); "agent" is answered with the client's User-Agent,
 * "count" with the number of messages so far, and "quit" closes. Binary messages come back as they
 * are. A request with the header X-Legacy-Refuse is refused.
 */

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "websocket_plugin.h"

typedef struct _LegacyData
{
  unsigned long messages;
} LegacyData;

extern EXPORT WebSocketPlugin * CALLBACK legacy_init(void);

static size_t legacy_text(const WebSocketServer *server, const char *text)
{
  return server->send(server, MESSAGE_TYPE_TEXT, (unsigned char *) text, strlen(text));
}

static void * CALLBACK legacy_on_connect(const WebSocketServer *server)
{
  LegacyData *data = NULL;

  if ((server != NULL) && (server->version == 1))
  {
    size_t i, count = server->protocol_count(server);

    if (server->header_get(server, "X-Legacy-Refuse") != NULL)
    {
      return NULL;
    }

    for (i = 0; i < count; i++)
    {
      const char *protocol = server->protocol_index(server, i);

      if ((protocol != NULL) && (strcmp(protocol, "legacy") == 0))
      {
        server->protocol_set(server, protocol);
        break;
      }
    }

    server->header_set(server, "X-Legacy", "1");

    if ((data = (LegacyData *) malloc(sizeof(LegacyData))) != NULL)
    {
      data->messages = 0;
    }
  }

  return data;
}

static size_t CALLBACK legacy_on_message(void *plugin_private, const WebSocketServer *server,
                                         const int type, unsigned char *buffer,
                                         const size_t buffer_size)
{
  LegacyData *data = (LegacyData *) plugin_private;
  size_t i;

  data->messages++;

  switch (type)
  {
  case MESSAGE_TYPE_TEXT:
    if ((buffer_size == 5) && (memcmp(buffer, "agent", 5) == 0))
    {
      const char *agent = server->header_get(server, "User-Agent");

      return legacy_text(server, (agent != NULL) ? agent : "(none)");
    }
    if ((buffer_size == 5) && (memcmp(buffer, "count", 5) == 0))
    {
      char number[32];

      sprintf(number, "%lu", data->messages);
      return legacy_text(server, number);
    }
    if ((buffer_size == 4) && (memcmp(buffer, "quit", 4) == 0))
    {
      server->close(server);
      return 0;
    }
    for (i = 0; i < buffer_size; i++)
    {
      if (buffer[i] < 0x80)
      {
        buffer[i] = (unsigned char) toupper(buffer[i]);
      }
    }
    return server->send(server, MESSAGE_TYPE_TEXT, buffer, buffer_size);

  case MESSAGE_TYPE_BINARY:
    return server->send(server, MESSAGE_TYPE_BINARY, buffer, buffer_size);

  default:
    return 0;
  }
}

static void CALLBACK legacy_on_disconnect(void *plugin_private, const WebSocketServer *server)
{
  (void) server;
  free(plugin_private);
}

static void CALLBACK legacy_destroy(WebSocketPlugin *plugin)
{
  (void) plugin;
}

static WebSocketPlugin s_plugin =
{
  sizeof(WebSocketPlugin),
  WEBSOCKET_PLUGIN_VERSION_0,
  legacy_destroy,
  legacy_on_connect,
  legacy_on_message,
  legacy_on_disconnect
};

extern EXPORT WebSocketPlugin * CALLBACK legacy_init(void)
{
  return &s_plugin;
}
