/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A module for httpd whose handler `idle` answers 101, with the header fields of a WebSocket's answer, and then suspends
 * the request for ever. What such a connection costs is httpd's and OpenSSL's; what a suspended WebSocket costs beyond
 * that is mod_websocket's.
 */

#include <httpd.h>
#include <http_config.h>
#include <http_protocol.h>

static int handle(request_rec *r)
{
    if (strcmp(r->handler, "idle") != 0) {
        return DECLINED;
    }
    r->status = HTTP_SWITCHING_PROTOCOLS;
    apr_table_setn(r->headers_out, "Upgrade", "websocket");
    apr_table_setn(r->headers_out, "Connection", "Upgrade");
    /* RFC 6455, section 1.3: for the key of the sample handshake. A shorter answer takes 8 KiB less of httpd's pools. */
    apr_table_setn(r->headers_out, "Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    ap_send_interim_response(r, 1);
    return SUSPENDED;
}

static void hooks(apr_pool_t *pool)
{
    (void)pool;
    ap_hook_handler(handle, NULL, NULL, APR_HOOK_MIDDLE);
}

AP_DECLARE_MODULE(idle) = { STANDARD20_MODULE_STUFF, NULL, NULL, NULL, NULL, NULL, hooks };
