//! Generates the bindings to httpd and APR for the feature `httpd`; without it there is nothing to do.
//!
//! Asks `apxs` (or what the environment variable `APXS` names) where the headers are.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Libraries that a test program loads find in it what they find in the module.
    for name in ["core_framing", "core_register_framing"] {
        println!("cargo:rustc-link-arg-tests=-Wl,--export-dynamic-symbol={name}");
    }
    #[cfg(feature = "httpd")]
    httpd::generate();
}

#[cfg(feature = "httpd")]
mod httpd {
    use std::{env, fs, path::Path, path::PathBuf, process::Command};

    /// httpd 2.4.49: the first with the child_stopping hook.
    const MMN_MAJOR: u32 = 20_120_211;
    const MMN_MINOR: u32 = 110;

    pub(super) fn generate() {
        println!("cargo:rerun-if-env-changed=APXS");
        println!("cargo:rerun-if-changed=src/httpd/wrapper.h");
        let apxs = apxs();
        let include = query(&apxs, "INCLUDEDIR");
        check_version(Path::new(&include));
        let mut args = vec![format!("-I{include}")];
        for (config, options) in
            [("APR_CONFIG", &["--includes", "--cppflags"][..]), ("APU_CONFIG", &["--includes"])]
        {
            let program = query(&apxs, config);
            for option in options {
                let words = run(&program, &[option]);
                args.extend(words.split_whitespace().map(str::to_owned));
            }
        }
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
        bindgen::Builder::default()
            .header("src/httpd/wrapper.h")
            .clang_args(args)
            .allowlist_function("(ap|apr)_.*")
            .allowlist_type("(ap|apr)_.*|command_rec|conn_rec|core_server_config|module|process_rec|request_rec|server_rec")
            .allowlist_var("ap_conftree|apr_bucket_type_(eos|flush)|core_module|(AP|APR|APLOG|DECLINED|GLOBAL|HTTP|M|MODULE|NOT_IN|OK|OR|ACCESS|REMOTE_HOST|REQUEST_CHUNKED|RSRC).*")
            // 80-bit floating point has no counterpart, and nothing here needs it.
            .blocklist_function("apr_strtoff|apr_.*q?[efg]cvt.*")
            .blocklist_item("FP_.*")
            .use_core()
            .layout_tests(false)
            .generate_comments(false)
            .merge_extern_blocks(true)
            .wrap_unsafe_ops(true)
            .rust_target(bindgen::RustTarget::stable(85, 0).expect("1.85 is known to bindgen"))
            .rust_edition(bindgen::RustEdition::Edition2024)
            .generate()
            .expect("bindgen could not read httpd's headers: is libclang (Debian: libclang-dev) installed?")
            .write_to_file(out.join("bindings.rs"))
            .expect("the bindings can be written to cargo's OUT_DIR");
    }

    /// The apxs to ask: `APXS`, or the first of its usual names that runs.
    fn apxs() -> String {
        let named = env::var("APXS").ok().filter(|name| !name.is_empty());
        let candidates =
            named.map_or_else(|| vec!["apxs".into(), "apxs2".into()], |name| vec![name]);
        let works = |name: &String| Command::new(name).args(["-q", "INCLUDEDIR"]).output().is_ok();
        candidates.iter().find(|name| works(name)).cloned().unwrap_or_else(|| {
            panic!(
                "no apxs found (tried {}): install httpd's development files (Debian: apache2-dev) \
                 or set APXS to its path",
                candidates.join(", ")
            )
        })
    }

    fn query(apxs: &str, what: &str) -> String {
        run(apxs, &["-q", what])
    }

    fn run(program: &str, args: &[&str]) -> String {
        let output = Command::new(program).args(args).output();
        let output = output.unwrap_or_else(|e| panic!("{program} cannot be run: {e}"));
        assert!(output.status.success(), "{program} {} failed", args.join(" "));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Refuses headers that are too old, with a sentence, before the compiler does with many.
    fn check_version(include: &Path) {
        let path = include.join("ap_mmn.h");
        println!("cargo:rerun-if-changed={}", path.display());
        let text = fs::read_to_string(&path)
            .unwrap_or_else(|e| panic!("{} cannot be read: {e}", path.display()));
        let number = |name: &str| -> u32 {
            text.lines()
                .filter_map(|line| line.strip_prefix("#define ")?.trim().strip_prefix(name))
                .find_map(|rest| rest.split_whitespace().next()?.parse().ok())
                .unwrap_or_else(|| panic!("{} defines no {name}", path.display()))
        };
        let (major, minor) =
            (number("MODULE_MAGIC_NUMBER_MAJOR"), number("MODULE_MAGIC_NUMBER_MINOR"));
        assert!(
            major == MMN_MAJOR && minor >= MMN_MINOR,
            "the httpd headers in {} have module magic number {major}.{minor}; mod_websocket needs \
             httpd 2.4.49 or newer ({MMN_MAJOR}.{MMN_MINOR})",
            include.display()
        );
    }
}
