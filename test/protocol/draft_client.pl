# draft_client.pl PORT PATH VERSION: a client of draft 76 ("draft-ietf-hybi-00") or 75 ("draft-hixie-75") by
# Protocol::WebSocket, an implementation that is not ours. Sends each line of standard input as a text message, prints the
# answers, one a line, and says goodbye.
use strict;
use warnings;
use IO::Socket::INET;
use Protocol::WebSocket::Frame;
use Protocol::WebSocket::Handshake::Client;

my ($port, $path, $version) = @ARGV;
binmode STDIN, ':encoding(UTF-8)';
binmode STDOUT, ':encoding(UTF-8)';
local $SIG{ALRM} = sub { die "nothing came\n" };
alarm 20;

my $socket = IO::Socket::INET->new("localhost:$port") or die "connect: $!\n";
my $handshake = Protocol::WebSocket::Handshake::Client->new(
    url => "ws://localhost:$port$path", version => $version);
$handshake->req->subprotocol('chosen');
my $frame = Protocol::WebSocket::Frame->new(version => $version);
print $socket $handshake->to_string;
until ($handshake->is_done) {
    sysread($socket, my $byte, 1) or die "the handshake broke off\n";
    $handshake->parse($byte) or die $handshake->error, "\n";
}
print 'subprotocol: ', $handshake->res->subprotocol, "\n";

while (my $line = <STDIN>) {
    chomp $line;
    print $socket Protocol::WebSocket::Frame->new(version => $version, buffer => $line)->to_bytes;
    my $answer;
    until (defined($answer = $frame->next)) {
        sysread($socket, my $bytes, 4096) or die "the connection broke off\n";
        $frame->append($bytes);
    }
    print "$answer\n";
}

if ($version eq 'draft-ietf-hybi-00') {
    print $socket Protocol::WebSocket::Frame->new(version => $version, type => 'close')->to_bytes;
} else {
    $socket->shutdown(1);
}
my $rest = join '', <$socket>;
print 'rest: ', unpack('H*', $rest), "\n";
