"""The memory that channels have: it outlives a graceful restart, and no stop."""

from channels import GAP, META, Meta, Publisher, publish, publishing, room
from ws_frame import TEXT


def test_a_stop_and_start_begins_anew(httpd, over):
    conf = publishing() + room("^/all/(?<name>.*)$", "%{env:MATCH_NAME}", "WebSocketChannelReplay All")
    with httpd.serve(conf):
        last = publish(httpd, "anew", "before")["id"]
        httpd.graceful()
        client = over("ws", "/all/anew")
        client.expect(TEXT, "before")
        client.sock.close()
    with httpd.serve(conf):
        publish(httpd, "anew", "after")
        client = over("ws", "/all/anew", [("Sec-WebSocket-Protocol", META), ("Last-Event-ID", last)])
        assert Meta.of(client.read_frame()).media == GAP
        assert Meta.of(client.read_frame()).body == b"after"
        client.sock.close()


def test_another_size_takes_effect_at_a_start(httpd):
    conf = publishing()
    with httpd.serve("WebSocketChannelMemory 1M\n" + conf):
        with Publisher(httpd.port) as publisher:
            assert publisher.ask("POST", "size", bytes(200_000)).status == 413
        path = httpd.root / "conf/httpd.conf"
        path.write_text(path.read_text().replace("WebSocketChannelMemory 1M", "WebSocketChannelMemory 8M"))
        httpd.expect_log("WS0704: WebSocketChannelMemory takes effect when httpd is stopped and started: .* 1048576 bytes")
        httpd.graceful()
        with Publisher(httpd.port) as publisher:
            assert publisher.ask("POST", "size", bytes(200_000)).status == 413
    with httpd.serve("WebSocketChannelMemory 8M\n" + conf), Publisher(httpd.port) as publisher:
        assert publisher.ask("POST", "size", bytes(200_000)).status == 202
