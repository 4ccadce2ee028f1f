//! Which requests are answered at all: those that name one host, and that no page of another site has made.

use hyper::header::{self, HeaderName};
use hyper::{HeaderMap, Method, Request, StatusCode};
use std::net::IpAddr;

/// Who made a request, of a browser's own accord (W3C, Fetch Metadata Request Headers).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Why a request is refused.
pub type Refused = (StatusCode, &'static str);

/// Checks whom a request was sent to, and from where. With `only_local_names`, only names of this computer are taken for
/// hosts: a page from elsewhere must not reach us by a name of its own.
pub fn check<B>(request: &Request<B>, only_local_names: bool) -> Result<(), Refused> {
    let host = host(request)?;
    if only_local_names && !is_local(host) {
        return Err((StatusCode::FORBIDDEN, "this host name is not the computer's own; use 127.0.0.1, or --token-file"));
    }
    if !same_site(request, host) {
        return Err((StatusCode::FORBIDDEN, "a page of another site asked for this"));
    }
    Ok(())
}

/// The one value of a header; an error where there are several, or where it is not text.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, ()> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(drop),
        (Some(_), Some(_)) => Err(()),
    }
}

/// Whom a request names (RFC 9112, 3.2). Caches, proxies and we must not differ about it, so it may be named only once.
fn host<B>(request: &Request<B>) -> Result<&str, Refused> {
    let bad = |why| (StatusCode::BAD_REQUEST, why);
    let host = only(request.headers(), &header::HOST).map_err(|()| bad("one Host header is needed, not several"))?;
    let host = host.filter(|h| !h.is_empty()).ok_or(bad("a Host header is needed"))?;
    match request.uri().authority() {
        Some(target) if !target.as_str().eq_ignore_ascii_case(host) => {
            Err(bad("the request is for another host than its Host header says"))
        }
        _ => Ok(host),
    }
}

fn is_local(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether a browser says that our own page made the request, or its user; or no browser made it.
fn same_site<B>(request: &Request<B>, host: &str) -> bool {
    let headers = request.headers();
    let from = match only(headers, &SEC_FETCH_SITE) {
        Ok(None | Some("same-origin" | "none")) => true,
        // A link to the page itself, which shows nothing before it has asked again.
        Ok(Some(_)) => {
            let read_only = matches!(*request.method(), Method::GET | Method::HEAD);
            read_only && request.uri().path() == "/" && only(headers, &SEC_FETCH_MODE) == Ok(Some("navigate"))
        }
        Err(()) => false,
    };
    // `Origin` is scheme and host (RFC 6454, 7), or "null" for one that nobody may know. Behind a proxy the scheme is another.
    let origin = match only(headers, &header::ORIGIN) {
        Ok(None) => true,
        Ok(Some(origin)) => origin.split_once("://").is_some_and(|(_, site)| site.eq_ignore_ascii_case(host)),
        Err(()) => false,
    };
    from && origin
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(method: &str, target: &str, headers: &[(&str, &str)]) -> u16 {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check(&request.body(()).unwrap(), true).err().map_or(200, |refused| refused.0.as_u16())
    }

    #[test]
    fn only_names_of_this_computer_are_local() {
        for name in ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.8.0.1:80", "[::1]:8080", "[::1]"] {
            assert!(is_local(name), "{name}");
        }
        for name in ["evil.example", "evil.example:8080", "192.168.1.2", "localhost.evil.example", "127.0.0.1.evil.example:1", "", "[[::1]"]
        {
            assert!(!is_local(name), "{name}");
        }
    }

    #[test]
    fn one_host_is_named_and_no_other() {
        let local = ("host", "localhost:8080");
        for (target, headers, code) in [
            ("/v1/state", &[local][..], 200),
            ("/v1/state", &[], 400),
            ("/v1/state", &[("host", "")], 400),
            ("/v1/state", &[local, local], 400),
            ("/v1/state", &[local, ("host", "evil.example")], 400),
            ("/v1/state", &[("host", "evil.example")], 403),
            ("http://localhost:8080/v1/state", &[local], 200),
            ("http://evil.example/v1/state", &[local], 400),
            ("http://evil.example/v1/state", &[("host", "evil.example")], 403),
            ("http://localhost:8080/v1/state", &[("host", "evil.example")], 400),
            ("http://user@localhost:8080/v1/state", &[local], 400),
            ("http://localhost:8080/v1/state", &[], 400),
        ] {
            assert_eq!(checked("GET", target, headers), code, "{target} {headers:?}");
        }
    }

    #[test]
    fn pages_of_other_sites_get_nothing() {
        let host = ("host", "localhost:8080");
        let own = ("origin", "http://localhost:8080");
        for (method, path, headers, code) in [
            // A program, our page, an address typed by the user.
            ("POST", "/v1/classify", &[][..], 200),
            ("POST", "/v1/classify", &[own, ("sec-fetch-site", "same-origin")], 200),
            ("GET", "/v1/frame", &[("sec-fetch-site", "same-origin")], 200),
            ("GET", "/v1/frame", &[("sec-fetch-site", "none"), ("sec-fetch-mode", "navigate")], 200),
            // Behind a proxy with TLS.
            ("POST", "/v1/classify", &[("origin", "https://localhost:8080")], 200),
            // Pages of other sites: forms, fetch, pictures, frames, links.
            ("POST", "/v1/classify", &[("origin", "http://evil.example")], 403),
            ("POST", "/v1/classify", &[("origin", "null")], 403),
            ("POST", "/v1/classify", &[("origin", "http://localhost:8081")], 403),
            ("POST", "/v1/classify", &[("origin", "http://localhost:8080.evil.example")], 403),
            ("POST", "/v1/classify", &[own, ("origin", "http://evil.example")], 403),
            ("POST", "/v1/classify", &[("sec-fetch-site", "cross-site")], 403),
            ("POST", "/v1/classify", &[own, ("sec-fetch-site", "same-site")], 403),
            ("POST", "/", &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")], 403),
            ("GET", "/v1/frame", &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")], 403),
            ("GET", "/v1/frame", &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")], 403),
            ("GET", "/v1/state", &[("sec-fetch-site", "same-site")], 403),
            ("GET", "/metrics", &[("sec-fetch-site", "cross-site")], 403),
            ("GET", "/", &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")], 403),
            ("GET", "/", &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")], 200),
            ("GET", "/v1/state", &[("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")], 403),
        ] {
            assert_eq!(checked(method, path, &[&[host], headers].concat()), code, "{method} {path} {headers:?}");
        }
    }
}
