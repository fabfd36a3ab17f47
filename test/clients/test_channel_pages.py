"""The example pages of channels in a real browser, with the configuration of the demo; notify.php behind php-fpm."""

import json
import os
import pwd
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from channels import Publisher
from httpd import PREFORK, TLS, TOP, free_port, wait_until

pytestmark = pytest.mark.once
DEMO = (TOP / "examples/channels.conf").read_text()
names = iter(f"room{n}" for n in range(1000))


@pytest.fixture
def site(httpd):
    return f"http://localhost:{httpd.port}"


@pytest.fixture
def room():
    return next(names)


def subscribed(httpd, channel, count):
    with Publisher(httpd.port) as publisher:
        wait_until(lambda: publisher.ask("GET", channel).json["subscribers"] == count, 20, f"{count} of {channel}")


def curl(httpd, path, text):
    """What the documentation has a newcomer type."""
    command = ["curl", "-fsS", "-d", text, f"http://localhost:{httpd.port}/publish/{path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return json.loads(done.stdout)


def say(page, text):
    page.run(f"document.getElementById('message').value = {json.dumps(text)}")
    page.click("send")
    page.wait("document.getElementById('message').value === ''")


def shows(page, *lines, within=10):
    """These lines, each once and in this order, and nothing else."""
    text = "".join(f"{line}\n" for line in lines)
    page.wait(f"document.getElementById('log').textContent === {json.dumps(text)}", within)


class TestChat:
    CONF = DEMO

    @pytest.fixture
    def both(self, httpd, page, other_page, site, room):
        for one in page, other_page:
            one.open(f"{site}/chat.html#{room}")
            one.wait_text("status", "open")
        subscribed(httpd, f"chat/{room}", 2)
        return page, other_page

    def test_two_pages_and_curl_hear_each_other(self, httpd, both, room):
        say(both[0], "Grüße 😀")
        say(both[1], "hello")
        assert curl(httpd, f"chat/{room}", "from curl")["subscribers"] == 2
        for page in both:
            shows(page, "somebody: Grüße 😀", "somebody: hello", "from curl")

    def test_a_graceful_restart_loses_and_doubles_nothing(self, httpd, both, room):
        curl(httpd, f"chat/{room}", "before")
        expected = ["before"]
        for turn in range(3):
            httpd.graceful()
            for n in range(10):
                expected.append(f"{turn}.{n}")
                curl(httpd, f"chat/{room}", expected[-1])
            httpd.outlived()
            subscribed(httpd, f"chat/{room}", 2)
            curl(httpd, f"chat/{room}", f"after {turn}")
            expected.append(f"after {turn}")
            for page in both:
                shows(page, *expected, within=20)

    def test_a_restart_before_the_first_message(self, httpd, both, room):
        httpd.graceful()
        curl(httpd, f"chat/{room}", "meanwhile")
        httpd.outlived()
        for page in both:
            shows(page, "meanwhile", within=20)

    def test_who_comes_later_sees_what_was_said(self, httpd, page, site, room):
        for n in range(25):
            curl(httpd, f"chat/{room}", str(n))
        page.open(f"{site}/chat.html#{room}")
        shows(page, *range(5, 25))

    def test_other_rooms(self, httpd, both, room):
        other = next(names)
        curl(httpd, f"chat/{room}", "here")
        shows(both[0], "here")
        both[0].run(f"document.getElementById('room').value = '{other}'")
        both[0].click("enter")
        subscribed(httpd, f"chat/{other}", 1)
        subscribed(httpd, f"chat/{room}", 1)
        curl(httpd, f"chat/{other}", "there")
        shows(both[0], "there")
        shows(both[1], "here")
        assert f"/publish/chat/{other}" in both[0].text("curl")

    def test_html_is_text(self, httpd, both, room):
        html = "<img src=x onerror='hacked = true'><b>bold</b>"
        say(both[0], html)
        curl(httpd, f"chat/{room}", html)
        for page in both:
            shows(page, f"somebody: {html}", html)
            assert page.run("document.querySelector('#log *') === null && typeof hacked === 'undefined'")

    def test_binary_is_said_to_be(self, httpd, both, room):
        with Publisher(httpd.port) as publisher:
            publisher.post(f"chat/{room}", b"\0\xff")
        curl(httpd, f"chat/{room}", "text")
        shows(both[0], "(binary data)", "text")

    def test_a_gap_is_told(self, httpd, both, room):
        curl(httpd, f"chat/{room}", "seen")
        shows(both[0], "seen")
        both[0].run("last = '1-2-3'")
        httpd.graceful()
        # Then comes what is there.
        shows(both[0], "seen", "(Something is missing here: httpd does not have it any more.)", "seen", within=20)
        shows(both[1], "seen")

    def test_the_end_of_the_room(self, httpd, both, room):
        with Publisher(httpd.port) as publisher:
            publisher.ask("DELETE", f"chat/{room}")
        for page in both:
            page.wait_text("status", "closed")
        assert not both[0].run("new Promise((resolve) => setTimeout(() => resolve(socket.readyState !== 3), 1500))")
        subscribed(httpd, f"chat/{room}", 0)

    def test_a_message_that_is_refused_stays(self, page, site, room):
        page.open(f"{site}/chat.html#{room}")
        page.run("room = 'No'; document.getElementById('message').value = 'hello'")
        page.click("send")
        page.wait_text("log", "(Not sent: 404 ")
        assert page.run("document.getElementById('message').value") == "hello"

    def test_pages_of_others_may_not_publish(self, httpd, page, room):
        """The same host under another name is another origin."""
        page.open(f"http://127.0.0.1:{httpd.port}/chat.html#{room}")
        page.run(f"fetch('http://localhost:{httpd.port}/publish/chat/{room}', {{method: 'POST', mode: 'no-cors', body: 'evil'}})")
        say(page, "own")
        shows(page, "somebody: own")


class TestFirstNews:
    """There is no message yet, and so none that has an id."""

    CONF = DEMO

    def test_a_restart_before_the_first_message(self, httpd, page, site):
        page.open(f"{site}/news.html")
        page.wait_text("status", "open")
        subscribed(httpd, "news", 1)
        httpd.graceful()
        httpd.outlived()
        # More than who comes anew would get.
        expected = [str(n) for n in range(10)]
        for text in expected:
            curl(httpd, "news", text)
        shows(page, *expected, within=20)


class TestNews:
    CONF = DEMO

    @pytest.fixture
    def news(self, httpd, page, site):
        """The page, without what it shows of the tests before."""
        page.open(f"{site}/news.html")
        page.wait_text("status", "open")
        subscribed(httpd, "news", 1)
        begin = f"begin {next(names)}\n"
        curl(httpd, "news", begin)
        page.wait_text("log", begin)
        page.run("document.getElementById('log').textContent = ''")
        return page

    @staticmethod
    def publish(httpd, *arguments):
        """By news.sh."""
        env = {**os.environ, "PORT": str(httpd.port)}
        subprocess.run([TOP / "examples/news.sh", *arguments], env=env, timeout=10, check=True)

    def test_news(self, httpd, news):
        for text in ("one", "@two", "Grüße <b>😀</b>", "with\nlines"):
            self.publish(httpd, text)
        self.publish(httpd, "two", "words")
        shows(news, "one", "@two", "Grüße <b>😀</b>", "with\nlines", "two words")
        assert news.run("document.querySelector('#log *') === null")

    def test_it_resumes_after_a_restart(self, httpd, news):
        expected = []
        for turn in range(2):
            httpd.graceful()
            expected += [f"{turn}.{n}" for n in range(10)]
            for text in expected[-10:]:
                curl(httpd, "news", text)
            httpd.outlived()
            subscribed(httpd, "news", 1)
            curl(httpd, "news", f"after {turn}")
            expected.append(f"after {turn}")
            shows(news, *expected, within=20)

    def test_a_gap_is_told(self, httpd, page, site):
        curl(httpd, "news", "kept")
        text = (TOP / "examples/news.html").read_text().replace('let last = "";', 'let last = "1-2-3";')
        path = httpd.root / "htdocs/gap.html"
        path.write_text(text)
        path.chmod(0o644)
        page.open(f"{site}/gap.html")
        page.wait_text("log", "(Something is missing here: httpd does not have it any more.)\n")
        page.wait_text("log", "kept\n")

    def test_the_end(self, httpd, news):
        with Publisher(httpd.port) as publisher:
            publisher.ask("DELETE", "news")
        news.wait_text("status", "closed")
        subscribed(httpd, "news", 0)
        assert news.run("new Promise((resolve) => setTimeout(() => resolve(document.getElementById('status').textContent), 4000))") \
            == "closed"

    def test_every_few_seconds(self, httpd, news):
        env = {**os.environ, "PORT": str(httpd.port)}
        with subprocess.Popen([TOP / "examples/news.sh"], env=env, start_new_session=True) as script:
            try:
                news.wait("document.getElementById('log').textContent.split('\\n').length === 3", 15)
            finally:
                os.killpg(script.pid, 15)
        assert news.run(r"/^(It is \d\d:\d\d:\d\d\.\n){2}$/.test(document.getElementById('log').textContent)")


@pytest.mark.skipif(PREFORK, reason="mod_http2 does not support it")
class TestNewsOverHttp2:
    """Each request gets what is there, and the browser comes back."""

    CONF = DEMO + TLS + "H2WebSockets On\nProtocols h2 http/1.1\n"

    def test_nothing_is_missed_between(self, httpd, page):
        page.call("Security.setIgnoreCertificateErrors", ignore=True)
        page.open(f"https://localhost:{httpd.tls_port}/news.html")
        assert page.run("performance.getEntriesByType('navigation')[0].nextHopProtocol") == "h2"
        page.wait_text("status", "connecting")
        expected = []
        for n in range(12):
            expected.append(f"news {n}")
            curl(httpd, "news", expected[-1])
            time.sleep(0.3)
        shows(page, *expected)


@pytest.fixture
def php_fpm(httpd):
    """php-fpm as a user who may do nothing else; gives its socket."""
    binary = shutil.which("php-fpm") or next(map(str, sorted(Path("/usr/sbin").glob("php-fpm*"))), None)
    if binary is None:
        pytest.skip("there is no php-fpm")
    if not (httpd.modules / "mod_proxy_fcgi.so").exists():
        pytest.skip("httpd has no mod_proxy_fcgi")
    nobody = pwd.getpwnam("nobody")
    user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    folder = httpd.trails  # in which any user may write
    conf, sock, said = (folder / f"php-fpm.{name}" for name in ("conf", "sock", "said"))
    conf.write_text(
        f"[global]\nerror_log = {folder}/php-fpm.log\n[www]\nlisten = {sock}\nlisten.mode = 0666\n"
        "pm = static\npm.max_children = 2\n"
    )
    with open(said, "w") as output:
        process = subprocess.Popen(
            [binary, "-n", "-F", "-y", conf], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True, **user,
        )
    try:
        wait_until(lambda: process.poll() is not None or sock.exists(), 20, "php-fpm's start")
        assert process.poll() is None, said.read_text()
        yield sock
    finally:
        process.terminate()
        process.wait(10)


class TestPhp:
    """notify.php, with the configuration that its first lines have."""

    @pytest.fixture
    def notices(self, httpd, php_fpm, page):
        source = (TOP / "examples/notify.php").read_text()
        port = str(free_port())
        lines = [line.removeprefix("//     ") for line in source.splitlines() if line.startswith("//     ")]
        conf = "\n".join(lines).replace("8081", port) + "\n"
        conf += f'ProxyPassMatch "^/(notify\\.php)$" "unix:{php_fpm}|fcgi://localhost${{ROOT}}/htdocs/$1"\n'
        path = httpd.root / "htdocs/notify.php"
        path.write_text(source.replace("8081", port))
        path.chmod(0o644)
        with httpd.serve(conf, modules=["proxy", "proxy_fcgi"]):
            page.open(f"http://localhost:{httpd.port}/notify.php")
            page.wait("source.readyState === EventSource.OPEN")
            yield page
            page.open("about:blank")

    @staticmethod
    def shown(page):
        return page.run("[...document.querySelectorAll('#notices li')].map((item) => item.textContent)")

    def test_the_form_publishes_and_the_page_listens(self, httpd, notices, other_page):
        other_page.open(f"http://localhost:{httpd.port}/notify.php")
        other_page.wait("source.readyState === EventSource.OPEN")
        texts = ["Grüße 😀", "<b>&amp;</b>"]
        for n, text in enumerate(texts, 1):
            notices.run(f"document.getElementById('text').value = {json.dumps(text)}")
            notices.click("send")
            for page in notices, other_page:
                wait_until(lambda page=page, n=n: page.run("document.readyState") == "complete" and self.shown(page) == texts[:n])
        assert notices.run("document.getElementById('error')") is None

    def test_forms_of_other_sites(self, httpd, notices):
        answers = [
            subprocess.run(
                ["curl", "-sS", "-i", "-H", f"Sec-Fetch-Site: {site}", "-d", f"text={site}", f"http://localhost:{httpd.port}/notify.php"],
                capture_output=True, text=True, timeout=10, check=True,
            ).stdout.split()[1]
            for site in ("cross-site", "same-site", "same-origin")
        ]
        assert answers == ["403", "403", "303"]
        wait_until(lambda: self.shown(notices) == ["same-origin"])
