use serde_json::Value;

use crate::harness::{Home, Node, fake, fake_named, free_address, no_backends, server};

#[tokio::test]
async fn the_machine_is_described_as_the_node_describes_it() {
    let home = Home::new(&fake(""));
    let detected = home.run(&["detect", "--json"]).await;
    assert_eq!(detected.code, Some(0), "{}", detected.stderr);
    assert!(!home.data_dir().exists(), "looking makes no data directory");
    let detected: Value = serde_json::from_str(&detected.stdout).unwrap();
    let node = Node::start(&home).await;
    let path = "/identity";
    crate::model::eventually("the first look at the machine", async || {
        node.get(path).await.json::<Value>().await.unwrap()["cpu_cores"] != 0
    })
    .await;
    let identity: Value = node.get(path).await.json().await.unwrap();
    for same in [
        "cpu_model",
        "cpu_cores",
        "ram_total_mb",
        "gpu_tier",
        "node_tier",
        "gpu_name",
        "vram_total_mb",
        "lan_ip",
        "capabilities",
    ] {
        assert_eq!(detected[same], identity[same], "{same}");
    }
    assert!(detected["max_model_params_b_cpu"].is_number(), "{detected}");
    assert_eq!(detected["embedded_engine"], cfg!(feature = "embedded"), "{detected}");
}

#[tokio::test]
async fn servers_of_models_are_found_and_told_as_backends() {
    let home = Home::new(&fake(""));
    let node = Node::start(&home).await;
    let address = node.url("").replace("http://", "");
    let text = home.run(&["detect", "--probe", &address, "--probe", &free_address()]).await;
    assert_eq!(text.code, Some(0), "{}", text.stderr);
    let wanted = format!("1 model; as a backend: kind = \"openai\", url = \"http://{address}/v1\"");
    assert!(text.stdout.contains("Bombus") && text.stdout.contains(&wanted), "{}", text.stdout);
    for part in ["processor", "memory", "disk", "gpu tier", "node tier", "largest model"] {
        assert!(text.stdout.lines().any(|line| line.starts_with(part)), "{} lacks {part}", text.stdout);
    }
    let wrong = home.run(&["detect", "--probe", "somewhere"]).await;
    assert_eq!(wrong.code, Some(2), "{}", wrong.stderr);
}

#[tokio::test]
async fn a_machine_whose_backends_do_not_work_can_infer_nothing() {
    let other_home = Home::new(&fake(""));
    let other = Node::start(&other_home).await;
    let no_backend_of_it = other.url("").replace("http://", "");
    let dead = format!("http://{}/v1", free_address());
    let home = Home::new(&(no_backends() + &server("openai", "dead", &dead, "")));
    for with_node in [false, true] {
        let node = if with_node { Some(Node::start(&home).await) } else { None };
        let detected = home.run(&["detect", "--json", "--probe", &no_backend_of_it]).await;
        let detected: Value = serde_json::from_str(&detected.stdout).unwrap_or_else(|_| panic!("{}", detected.stderr));
        assert!(!detected["servers"].as_array().unwrap().is_empty(), "{detected}");
        let mut told = vec![detected];
        if let Some(node) = &node {
            told.push(node.get("/identity").await.json().await.unwrap());
        }
        for told in told {
            let infers = |capability: &Value| capability.as_str().is_some_and(|name| name.ends_with("_inference"));
            assert!(!told["capabilities"].as_array().unwrap().iter().any(infers), "{told}");
        }
    }
}

#[tokio::test]
async fn configured_backends_are_shown_without_their_secrets() {
    let upstream_home = Home::new(&fake("models = ['far', 'away']"));
    let upstream = Node::start(&upstream_home).await;
    let dead = format!("http://{}/v1", free_address());
    let config = no_backends()
        + &fake_named("script", "")
        + &server("openai", "works", &upstream.url("/v1"), "headers = { authorization = 'Bearer pollen' }")
        + &server("openai", "dead", &dead, "");
    let home = Home::new(&config);
    let address = upstream.url("").replace("http://", "");
    for with_node in [false, true] {
        let _node = if with_node { Some(Node::start(&home).await) } else { None };
        let shown = async || {
            let detected = home.run(&["detect", "--json"]).await;
            assert_eq!(detected.code, Some(0), "{}", detected.stderr);
            serde_json::from_str::<Value>(&detected.stdout).unwrap()
        };
        if with_node {
            crate::model::eventually("both servers looked at", async || {
                let backends = shown().await["backends"].clone();
                backends[1]["ready"] == true && backends[2]["error"].is_string()
            })
            .await;
        }
        let detected = shown().await;
        let backends = detected["backends"].as_array().unwrap();
        let names: Vec<&str> = backends.iter().filter_map(|backend| backend["name"].as_str()).collect();
        assert_eq!(names, ["script", "works", "dead"]);
        assert_eq!((&backends[1]["kind"], &backends[1]["url"]), (&"openai".into(), &upstream.url("/v1").into()));
        let told = if with_node { (Value::from(true), Value::from(2)) } else { (Value::Null, Value::Null) };
        assert_eq!((backends[1]["ready"].clone(), backends[1]["models"].clone()), told);
        let text = home.run(&["detect", "--probe", &address]).await.stdout;
        assert!(text.lines().any(|line| line.starts_with("backend ") && line.contains("dead: openai, ")), "{text}");
        assert!(text.contains("; it is the backend works"), "{text}");
        assert!(!text.contains("pollen") && !detected.to_string().contains("pollen"), "{text}");
    }
    // A node refuses such an address, but whoever wrote it looks at it first.
    let url = "http://bee:honeycomb@127.0.0.1:1/v1?token=nectar";
    let careless = Home::new(&(no_backends() + &server("openai", "careless", url, ""))).run(&["detect"]).await;
    assert!(careless.stdout.contains("careless: openai, http://bee:"), "{}", careless.stdout);
    for secret in ["honeycomb", "nectar"] {
        assert!(!careless.stdout.contains(secret), "{}", careless.stdout);
    }
}
