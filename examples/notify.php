<?php
// SPDX-License-Identifier: Apache-2.0
//
// A form that publishes, and a page that listens. It needs no extension of PHP. In httpd's configuration:
//
//     <Location "/notices">
//         SetHandler websocket-handler
//         WebSocketChannel notices
//         WebSocketChannelReplay 5
//     </Location>
//     Listen 127.0.0.1:8081
//     <VirtualHost 127.0.0.1:8081>
//         <Location "/publish/notices">
//             SetHandler websocket-publish
//             WebSocketChannel notices
//             Require local
//         </Location>
//     </VirtualHost>

declare(strict_types=1);

const PUBLISH = 'http://127.0.0.1:8081/publish/notices';

/** Publishes a text; whether httpd has taken it. */
function publish(string $text): bool
{
    $context = stream_context_create(['http' => [
        'method' => 'POST',
        'header' => 'Content-Type: text/plain; charset=utf-8',
        'content' => $text,
        'timeout' => 5,
    ]]);
    return @file_get_contents(PUBLISH, false, $context) !== false;
}

$error = null;
if ($_SERVER['REQUEST_METHOD'] === 'POST') {
    // A page of another site could have its visitor publish. An application asks here who the user is, too.
    if (($_SERVER['HTTP_SEC_FETCH_SITE'] ?? 'same-origin') !== 'same-origin') {
        http_response_code(403);
        exit('This form is on another site.');
    }
    $text = $_POST['text'] ?? '';
    if (is_string($text) && publish($text)) {
        header('Location: ' . strtok($_SERVER['REQUEST_URI'], '?'), true, 303);
        exit;
    }
    http_response_code(502);
    $error = 'It was not published.';
}
?>
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Notices</title>
<h1>Notices</h1>
<form method="post" id="form">
  <input name="text" id="text" required autocomplete="off">
  <button id="send">Publish</button>
</form>
<?php if ($error !== null): ?>
<p id="error"><?= htmlspecialchars($error) ?></p>
<?php endif ?>
<ul id="notices"></ul>
<script>
"use strict";

const source = new EventSource("/notices");

function add(text) {
  const item = document.createElement("li");
  item.textContent = text;
  document.getElementById("notices").append(item);
}

source.onmessage = (event) => add(event.data);
source.addEventListener("gap", () => add("(Something is missing here.)"));
source.addEventListener("close", () => source.close());
</script>
</html>
