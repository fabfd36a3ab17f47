"""The page of metrics in tests, read as Prometheus' own library reads it."""

import http.client

from httpd import wait_until
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics

METRICS = "<Location /metrics>\n    SetHandler websocket-metrics\n</Location>\n"


def ask(httpd, path="/metrics", method="GET", **headers):
    """A request for the page: status, headers, text."""
    connection = http.client.HTTPConnection("127.0.0.1", httpd.port, timeout=10)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def families(text):
    """The metrics of a page."""
    return list(openmetrics.text_string_to_metric_families(text))


def classic(text):
    """The samples of a page as they are in the older text format: by name and value of their label."""
    samples = [sample for family in parser.text_string_to_metric_families(text) for sample in family.samples]
    return {key(sample): int(sample.value) for sample in samples}


def key(sample):
    """What a sample is called in tests: `closes 1000` is websocket_closes_total{code="1000"}."""
    name = sample.name.removeprefix("websocket_").removesuffix("_total")
    return " ".join([name, *sample.labels.values()])


def metrics(httpd):
    """All samples."""
    status, _, text = ask(httpd)
    assert status == 200, text
    return {key(sample): int(sample.value) for family in families(text) for sample in family.samples}


class Moved:
    """How far the metrics have moved since this was made."""

    def __init__(self, httpd):
        self.httpd, self.before = httpd, metrics(httpd)

    def now(self):
        """Those that have moved, with how far."""
        now = metrics(self.httpd)
        return {name: moved for name in now if (moved := now[name] - self.before.get(name, 0))}

    def __call__(self, *names):
        """How far these have."""
        now = self.now()
        return [now.get(name, 0) for name in names]

    def become(self, expected, *names):
        """Waits until these have moved so far."""
        wait_until(lambda: self(*names) == expected, 5, f"{names} that have moved by {expected}")
