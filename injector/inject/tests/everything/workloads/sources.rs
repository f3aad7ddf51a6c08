//! The sources and scripts of the workloads.

/// Much of the interpreter and of the C library, with threads and a child.
pub(crate) const PYTHON: &str = r#"
import json, re, hashlib, zlib, threading, subprocess, os, collections, decimal, datetime, itertools, tempfile, struct, math
def f(n): return n if n < 2 else f(n - 1) + f(n - 2)
print(f(16))
print(json.loads(json.dumps({'a': [1, 2.5, None, 'x' * 100]})))
print(re.sub('(a+)b', r'<\1>', 'aab ab b' * 100)[:60])
print(hashlib.sha256(b'x' * 100000).hexdigest(), zlib.crc32(b'y' * 100000))
out = []
def work(i):
    s = 0
    for k in range(2000): s += k * i
    out.append(s)
ts = [threading.Thread(target=work, args=(i,)) for i in range(20)]
for t in ts: t.start()
for t in ts: t.join()
print(sorted(out)[:5])
print(subprocess.run(['/bin/echo', 'hello'], capture_output=True).stdout)
print(decimal.Decimal(2).sqrt(), math.sin(1), struct.pack('<d', 2.5))
with tempfile.TemporaryFile() as t:
    for i in range(1000): t.write(b'%d\n' % i)
    t.seek(0)
    print(sum(int(l) for l in t), flush=True)
pid = os.fork()
if pid == 0:
    print(sum(range(1000)), flush=True)
    os._exit(3)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
print(sorted(os.listdir('/'))[:3], '%.10f' % 1e10, datetime.datetime.fromtimestamp(0, datetime.timezone.utc))
class A:
    def __init__(self, x): self.x = x
    def __eq__(self, o): return self.x == o.x
try: {}['x']
except KeyError as e: print(e.args, A(3) == A(3))
import ast, dis, io, signal, time, socket, select, random, heapq, bisect, unicodedata, locale
print(ast.dump(ast.parse('a = b + c[1:2] if d else lambda: 0')))
random.seed(1); l = [random.random() for i in range(5000)]; l.sort(); print(l[0], heapq.nsmallest(2, l))
a, b = socket.socketpair(); a.send(b'abc'); print(b.recv(10), select.select([a], [b], [], 0)[1] == [b])
hits = []
signal.signal(signal.SIGALRM, lambda s, f: hits.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
while len(hits) < 4: sum(range(100))
signal.setitimer(signal.ITIMER_REAL, 0)
print(unicodedata.name('\u00e9'))
"#;

/// Runs a script in the interpreter's library.
pub(crate) const LAUNCHER: &str = r"
int Py_BytesMain(int argc, char **argv);
int main(int argc, char **argv) { return Py_BytesMain(argc, argv); }
";

/// Much of what a shell does.
pub(crate) const BASH: &str = r#"
set -u
fib() { local n=$1; if ((n < 2)); then echo $n; else echo $(($(fib $((n - 1))) + $(fib $((n - 2))))); fi; }
fib 7
declare -A words
while read -r -a line; do for w in "${line[@]}"; do words[${#w}]=$((${words[${#w}]:-0} + 1)); done; done < /etc/services
for k in $(printf '%s\n' "${!words[@]}" | sort -n); do echo "$k ${words[$k]}"; done
for i in {1..200}; do a[i]=$((i * i % 97)); done
echo "${a[@]:5:20}" "${#a[@]}"
[[ "error 42: bad" =~ ([a-z]+)\ ([0-9]+) ]] && echo "${BASH_REMATCH[2]}"
cat <<EOF | tr a-z A-Z | rev
here is a document with $((6 * 7)) lines
EOF
trap 'echo usr1' USR1; kill -USR1 $$
trap 'echo leaving' EXIT
(exit 7); echo $?
x=$(for i in 1 2 3; do ( echo "sub $i" ) & wait; done); echo "$x"
printf '%05d|%-10s|%x|%q\n' 42 left 255 'a b$c'
s="hello world"; echo "${s/o/0}" "${s//o/0}" "${s^^}" "${s:2:5}" "${s#* }" "${s%%o*}"
case "$s" in h*w*) echo match ;; *) echo none ;; esac
select_sum=0; for ((i = 0; i < 3000; i++)); do ((select_sum += i ^ (i << 1))); done; echo $select_sum
mapfile -t rows < <(seq 1 100 | sort -r); echo "${rows[3]} ${#rows[@]}"
echo /etc/host* | tr ' ' '\n' | sort | head -3
f() { return $(($1 % 256)); }; for i in 1 77 255; do f $i; echo $?; done
coproc cat; echo coproc >&"${COPROC[1]}"; read -r r <&"${COPROC[0]}"; echo "$r"; c=$COPROC_PID; eval "exec ${COPROC[1]}>&-"; wait $c; echo $?
exec 5< /etc/passwd; read -r first <&5; echo "$first"; exec 5<&-
echo 'a,b,c' | { IFS=, read -r p q r; echo "$r$q$p"; }
test -d / -a -r /etc/passwd && echo dir
diff <(seq 1 5) <(seq 2 6); echo "diff $?"
eval 'y=5; echo $((y ** 3))'
ulimit -S -c 0; umask 077; umask
for i in $(seq 1 40); do /bin/true; done; echo forks done
printf '%s\n' {z..a} | paste -sd+ | cut -c1-20
echo "2 3" | while read -r a b; do echo $((a * b)); done
shopt -s extglob; t="  trim me  "; t="${t##+( )}"; echo "[${t%%+( )}]"
getopts ab: o -a -b val; echo "$o"; type -t fib; compgen -A builtin | wc -l
"#;

/// Streams, locales, regular expressions, exceptions, threads.
pub(crate) const CPLUSPLUS: &str = r#"
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <iomanip>
#include <iostream>
#include <locale>
#include <map>
#include <numeric>
#include <random>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <thread>
#include <unordered_map>
#include <variant>
#include <vector>
struct Guard { int &n; ~Guard() { n++; } };
static int unwound;
static int deep(int n) { Guard g{unwound}; if (n == 0) throw std::runtime_error("deep"); return deep(n - 1) + 1; }
int main() {
    std::ostringstream out;
    out << std::setprecision(12) << 3.14159265358979 << ' ' << std::hex << 255 << ' ' << std::scientific << 1e100;
    std::cout << out.str() << '\n';
    std::istringstream in("12 abc 3.5 0x1f"); int i; std::string s; double d; in >> i >> s >> d;
    std::cout << i << s << d << '\n';
    for (int round = 0; round < 200; round++) {
        try { deep(10); } catch (const std::exception &e) { if (std::string(e.what()) != "deep") return 1; }
    }
    std::cout << unwound << '\n';
    try { std::vector<int>().at(5); } catch (const std::out_of_range &e) { std::cout << "range\n"; }
    try { std::stoi("x"); } catch (const std::invalid_argument &e) { std::cout << e.what() << '\n'; }
    try { throw std::bad_alloc(); } catch (const std::bad_alloc &e) { std::cout << e.what() << '\n'; }
    std::regex r("([a-z]+)([0-9]+)"); std::smatch m; std::string text = "xx abc123 def456";
    for (auto b = std::sregex_iterator(text.begin(), text.end(), r); b != std::sregex_iterator(); ++b) std::cout << (*b)[2] << ' ';
    std::cout << std::regex_replace(text, r, "<$2>") << '\n';
    std::map<std::string, int> tree; std::unordered_map<std::string, int> hash;
    for (int k = 0; k < 5000; k++) { auto key = std::to_string(k * 7919 % 5003); tree[key]++; hash[key]++; }
    std::cout << tree.size() << ' ' << hash.size() << ' ' << tree.begin()->first << '\n';
    std::mt19937 random(1); std::vector<unsigned> v(5000); std::generate(v.begin(), v.end(), random);
    std::stable_sort(v.begin(), v.end()); std::cout << v[100] << ' ' << std::accumulate(v.begin(), v.end(), 0ull) << '\n';
    std::vector<std::future<long>> f;
    for (int k = 0; k < 8; k++) f.push_back(std::async(std::launch::async, [k] { long n = 0; for (int j = 0; j < 1000; j++) { try { if (j % 50 == k) throw j; n += j; } catch (int x) { n -= x; } } return n; }));
    for (auto &x : f) std::cout << x.get() << ' ';
    std::promise<int> p; auto bad = p.get_future(); std::thread([&] { try { throw std::logic_error("thread"); } catch (...) { p.set_exception(std::current_exception()); } }).join();
    try { bad.get(); } catch (const std::logic_error &e) { std::cout << e.what() << '\n'; }
    { std::ofstream o("file.txt"); for (int k = 0; k < 1000; k++) o << k << '\n'; }
    std::ifstream file("file.txt"); long sum = 0, n; while (file >> n) sum += n; std::cout << sum << ' ' << std::filesystem::file_size("file.txt") << '\n';
    std::cout << std::put_money("12345") << ' ' << std::use_facet<std::ctype<char>>(std::locale()).toupper('x') << '\n';
    std::variant<int, std::string> var = "text"; std::visit([](auto &x) { std::cout << x << '\n'; }, var);
    std::function<int(int)> fact = [&](int n) { return n < 2 ? 1 : n * fact(n - 1); }; std::cout << fact(10) << std::endl;
    return 0;
}
"#;

/// A handshake and data between a client and a server in one process, and other uses of the library.
pub(crate) const TLS: &str = r#"
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static void check(int ok, const char *what) { if (!ok) { fprintf(stderr, "%s\n", what); ERR_print_errors_fp(stderr); exit(1); } }
static void session(int version, X509 *cert, EVP_PKEY *key) {
    SSL_CTX *sc = SSL_CTX_new(TLS_server_method()), *cc = SSL_CTX_new(TLS_client_method());
    check(SSL_CTX_use_certificate(sc, cert) == 1 && SSL_CTX_use_PrivateKey(sc, key) == 1, "certificate");
    SSL_CTX_set_max_proto_version(sc, version);
    X509_STORE_add_cert(SSL_CTX_get_cert_store(cc), cert);
    SSL_CTX_set_verify(cc, SSL_VERIFY_PEER, 0);
    SSL *s = SSL_new(sc), *c = SSL_new(cc);
    BIO *a, *b; check(BIO_new_bio_pair(&a, 0, &b, 0), "pair");
    SSL_set_bio(s, a, a); SSL_set_bio(c, b, b); SSL_set_accept_state(s); SSL_set_connect_state(c);
    for (int i = 0; i < 20 && !(SSL_is_init_finished(s) && SSL_is_init_finished(c)); i++) { SSL_do_handshake(c); SSL_do_handshake(s); }
    check(SSL_is_init_finished(s) && SSL_is_init_finished(c), "handshake");
    check(SSL_get_verify_result(c) == X509_V_OK, "verify");
    char data[4000], got[4000]; long total = 0;
    for (int i = 0; i < 100; i++) {
        memset(data, i, sizeof data);
        check(SSL_write(c, data, sizeof data) == sizeof data, "write");
        int n = 0; while (n < (int)sizeof got) { int r = SSL_read(s, got + n, sizeof got - n); check(r > 0, "read"); n += r; }
        check(!memcmp(data, got, sizeof got), "data"); total += n;
    }
    printf("%s %s %ld\n", SSL_get_version(c), SSL_get_cipher(c), total);
    SSL_free(s); SSL_free(c); SSL_CTX_free(sc); SSL_CTX_free(cc);
}
static void digest(const char *name) {
    unsigned char out[EVP_MAX_MD_SIZE]; unsigned n; static char data[50000];
    const EVP_MD *md = EVP_get_digestbyname(name); if (!md) return;
    if (!EVP_Digest(data, sizeof data, out, &n, md, 0)) return;
    printf("%s ", name); for (unsigned i = 0; i < n; i++) printf("%02x", out[i]); puts("");
}
static void cipher(const char *name) {
    unsigned char key[64] = {1}, iv[16] = {2}, in[5000] = {3}, out[6000]; int n, m;
    EVP_CIPHER_CTX *x = EVP_CIPHER_CTX_new(); const EVP_CIPHER *e = EVP_get_cipherbyname(name);
    if (e && EVP_EncryptInit_ex(x, e, 0, key, iv) && EVP_EncryptUpdate(x, out, &n, in, sizeof in) && EVP_EncryptFinal_ex(x, out + n, &m)) {
        unsigned h = 0; for (int i = 0; i < n + m; i++) h = h * 31 + out[i]; printf("%s %d %08x\n", name, n + m, h);
    }
    EVP_CIPHER_CTX_free(x);
}
int main(void) {
    EVP_PKEY *rsa = EVP_RSA_gen(2048), *ec = EVP_EC_gen("P-256"); check(rsa && ec, "keys");
    EVP_PKEY *keys[] = {rsa, ec};
    for (int k = 0; k < 2; k++) {
        X509 *cert = X509_new(); X509_set_version(cert, 2); ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
        X509_gmtime_adj(X509_getm_notBefore(cert), 0); X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
        X509_set_pubkey(cert, keys[k]); X509_NAME *n = X509_get_subject_name(cert);
        X509_NAME_add_entry_by_txt(n, "CN", MBSTRING_ASC, (const unsigned char *)"localhost", -1, -1, 0); X509_set_issuer_name(cert, n);
        check(X509_sign(cert, keys[k], EVP_sha256()) > 0, "sign");
        session(TLS1_2_VERSION, cert, keys[k]); session(TLS1_3_VERSION, cert, keys[k]);
        BIO *m = BIO_new(BIO_s_mem()); PEM_write_bio_X509(m, cert); X509 *again = PEM_read_bio_X509(m, 0, 0, 0);
        check(again && !X509_cmp(cert, again), "pem"); X509_free(again); BIO_free(m); X509_free(cert);
    }
    const char *digests[] = {"md5", "sha1", "sha224", "sha256", "sha384", "sha512", "sha3-256", "blake2b512", "blake2s256", "ripemd160", "sm3"};
    for (unsigned i = 0; i < sizeof digests / sizeof *digests; i++) digest(digests[i]);
    const char *ciphers[] = {"aes-128-cbc", "aes-256-cbc", "aes-128-ctr", "aes-256-gcm", "aes-256-ofb", "aes-128-xts", "camellia-256-cbc", "chacha20", "chacha20-poly1305", "des-ede3-cbc", "sm4-cbc", "aria-128-cbc"};
    for (unsigned i = 0; i < sizeof ciphers / sizeof *ciphers; i++) cipher(ciphers[i]);
    unsigned char out[64];
    check(PKCS5_PBKDF2_HMAC("password", 8, (const unsigned char *)"salt", 4, 2000, EVP_sha512(), 64, out), "pbkdf2");
    for (int i = 0; i < 64; i++) printf("%02x", out[i]);
    puts(""); ERR_clear_error();
    BIGNUM *p = BN_new(); BN_generate_prime_ex(p, 256, 0, 0, 0, 0); printf("%d\n", BN_check_prime(p, 0, 0)); BN_free(p);
    EVP_PKEY_free(rsa); EVP_PKEY_free(ec);
    return 0;
}
"#;

/// Compiled code, a worker, a child.
pub(crate) const NODE: &str = r#"
const { Worker } = require('worker_threads');
const { execFileSync } = require('child_process');
let n = 0;
for (let i = 0; i < 3e6; i++) n = (n * 31 + i) % 1000003;
console.log(n, execFileSync('/bin/echo', ['child']).toString().trim());
const w = new Worker("require('worker_threads').parentPort.postMessage('worker'.repeat(3))", { eval: true });
w.on('message', (m) => { console.log(m); });
w.on('exit', () => console.log(Buffer.alloc(100000, 'x').toString('base64').length));
"#;

/// Compiled code, threads, a child.
pub(crate) const JAVA: &str = r#"
public class Work {
    public static void main(String[] a) throws Exception {
        long n = 0;
        for (int i = 0; i < 3000000; i++) n = (n * 31 + i) % 1000003;
        System.out.println(n);
        Thread[] t = new Thread[4];
        java.util.concurrent.atomic.AtomicLong sum = new java.util.concurrent.atomic.AtomicLong();
        for (int i = 0; i < 4; i++) { t[i] = new Thread(() -> { for (int k = 0; k < 100000; k++) sum.addAndGet(new byte[100].length); }); t[i].start(); }
        for (Thread x : t) x.join();
        System.out.println(sum.get());
        Process p = new ProcessBuilder("/bin/echo", "child").inheritIO().start();
        System.out.println(p.waitFor());
    }
}
"#;
