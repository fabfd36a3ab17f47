// peer_ws.js PORT: an echo server built on ws; PERMESSAGE_DEFLATE=1 in the environment has it compress.
const { WebSocketServer } = require("ws");

const server = new WebSocketServer({
  host: "127.0.0.1",
  port: Number(process.argv[2]),
  perMessageDeflate: process.env.PERMESSAGE_DEFLATE === "1",
});
server.on("connection", (socket) => {
  socket.on("error", () => {});
  socket.on("message", (data, isBinary) => socket.send(data, { binary: isBinary }));
});
